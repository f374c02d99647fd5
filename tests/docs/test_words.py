"""Help, documentation, reports and errors are written in the words that engineers use."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tritter_mem.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
TEMPLATES = sorted((ROOT / "tritter_mem" / "report" / "templates").glob("*"))
MODULES = sorted((ROOT / "tritter_mem").rglob("*.py"))
LEAVE = {
    r"told": "passed",
    r"h(e|o)ld(s|ing)? (\S+ ){0,4}against": "compared with",
    r"com(e|es|ing) by": "obtained",
    r"(?<!there )(is|are) none": "is empty",
    r"no more": "only",
    r"of (its|their|his|your|our|my) own": "separate",
    r"stretch(es)?": "phases",
    r"marks": "boundaries, shows",
    r"climb(s|ed)?": "retry",
    r"live": "allocated, alive, moments",
    r"places": "locations",
    r"(it|which|that|this|one|other|and|what|they) (is|are) no": "is not a",
    r"informs": "does not decide",
    r"came to": "were",
    r"; allowed:": "got X, expected Y",
    r"for ever": "forever",
    r"so many of (it|them)": "the number of",
    r"for real": "runs on",
    r"(is|are) said": "is shown, is reported",
    r"anew": "again",
}
"""What to leave, and what to write instead."""


def prose(text: str) -> str:
    """A page without its code, which quotes other programs, and without its links."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "`code`", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def found_in(text: str) -> list[str]:
    """Every word to leave, with what stands around it."""
    flat = " ".join(text.split())
    return [
        f"{pattern!r}, write {instead!r}: …{flat[max(0, at.start() - 40) : at.end() + 40]}…"
        for pattern, instead in LEAVE.items()
        for at in re.finditer(rf"(?<![\w-]){pattern}(?![\w-])", flat, re.IGNORECASE)
    ]


def texts_of(module: Path) -> Iterator[str]:
    """The texts of a module that people may see: all but its docstrings and names."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in alone else None
        if isinstance(text, str) and " " in text:
            yield text


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_leaves_the_words_to_leave(name: str) -> None:
    done = CliRunner().invoke(app, [*filter(None, [name]), "--help"])
    assert found_in(done.stdout) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_leave_the_words_to_leave(page: Path) -> None:
    assert found_in(prose(page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda page: page.name)
def test_templates_leave_the_words_to_leave(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    shown = " ".join(re.findall(r">([^<>{}]+)<", text)) if template.suffix == ".html" else ""
    assert found_in(shown) == []


def test_messages_and_reports_leave_the_words_to_leave() -> None:
    hits = [
        f"{module.relative_to(ROOT)}: {hit}"
        for module in MODULES
        for text in texts_of(module)
        for hit in found_in(text)
    ]
    assert hits == []


def test_the_words_are_found() -> None:
    """The test itself works: each pattern finds what it names."""
    text = "It is held against it; told; it informs, no more. Found a live one of its own."
    assert len(found_in(text)) == 6
