"""What listing commands print: a table for people, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import typer


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], numeric: int = 0) -> None:
    """Print a table.

    Args:
        headings: one for each column; the last column wraps.
        rows: cells in the order of the headings.
        numeric: how many columns after the first hold numbers, which are aligned to the right.
    """
    from rich import box
    from rich.table import Table

    from tritter_mem.report.terminal import make_console

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, heading in enumerate(headings):
        right, last = 1 <= index <= numeric, index == len(headings) - 1
        table.add_column(heading, justify="right" if right else "left", no_wrap=not last)
    for row in rows:
        table.add_row(*row)
    make_console().print(table)
