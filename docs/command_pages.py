"""The manual's pages of commands, written from the command line itself before each build."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from tritter_mem.cli.main import COMMANDS, OTHER_NAMES, LazyCommand

FOLDER = Path(__file__).parent / "commands"


def write_pages(folder: Path = FOLDER) -> None:
    """Write a page for each command, and remove those of commands that are gone."""
    folder.mkdir(exist_ok=True)
    pages = {f"{name}.md": page(name) for name in COMMANDS if name not in OTHER_NAMES}
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def page(name: str) -> str:
    """One command: what it does, an example, its arguments and options."""
    context = LazyCommand(name).make_context(name, [], resilient_parsing=True)
    command = context.command
    paragraphs = inspect.cleandoc(command.help).split("\n\n")
    example = paragraphs.pop().removeprefix("Example:") if "Example:" in paragraphs[-1] else ""
    usage = " ".join(["tritter-mem", name, *command.collect_usage_pieces(context)])
    parts = [f"# tritter-mem {name}", *map(_prose, paragraphs), f"```text\n{usage}\n```"]
    if example:
        parts += ["For example:", f"```console\n$ {' '.join(example.split())}\n```"]
    for kind, heading in (("argument", "Arguments"), ("option", "Options")):
        records = [
            found
            for parameter in command.get_params(context)
            if parameter.param_type_name == kind
            and (found := _record(parameter, context)) is not None
        ]
        if records:
            rows = [f"| `{_cell(left)}` | {_cell(_prose(right))} |" for left, right in records]
            table = [f"| {kind} | meaning |", "|---|---|", *rows]
            parts += [f"## {heading}", "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def _record(parameter: Any, context: Any) -> tuple[str, str] | None:
    found = parameter.get_help_record(context)
    return None if found is None else (found[0], found[1])


def _prose(text: str) -> str:
    """Text of a help page as Markdown: what looks like an option or a file is code."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"([*_<>\[\]])", r"\\\1", text)
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]+)", r"`\1`", text)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
