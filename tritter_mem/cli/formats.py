"""Formats that a check is printed in, and where each goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from tritter_mem.cli.listing import print_json
from tritter_mem.errors import OutputError

if TYPE_CHECKING:
    from tritter_mem.check.outcome import CheckReport

Format = Literal["text", "json", "markdown", "junit", "github"]


def show_check(report: CheckReport, form: Format) -> None:
    """Print a check as one of the formats; for GitHub its step summary is added to as well."""
    if form == "json":
        print_json(report.to_dict())
    elif form == "text":
        from tritter_mem.report.check import render_check
        from tritter_mem.report.terminal import make_console

        render_check(report, make_console())
    elif form == "junit":
        from tritter_mem.report.junit import render_junit

        typer.echo(render_junit(report), nl=False)
    else:
        _show_markdown(report, annotations=form == "github")


def _show_markdown(report: CheckReport, annotations: bool) -> None:
    from tritter_mem.report.check import counts
    from tritter_mem.report.github import render_annotations
    from tritter_mem.report.markdown import render_markdown

    text = render_markdown(report)
    if not annotations:
        typer.echo(text, nl=False)
        return
    typer.echo(render_annotations(report), nl=False)
    typer.echo(f"memory: {counts(report)}")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        _add_to_summary(Path(summary), text)


def _add_to_summary(path: Path, text: str) -> None:
    from tritter_mem.report.github import fitting_summary

    try:
        written = path.stat().st_size if path.exists() else 0
        with path.open("a", encoding="utf-8") as file:
            file.write(fitting_summary(text, written))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
