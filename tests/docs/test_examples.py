"""Examples of README and the manual: commands parse, quick ones run and print what is shown."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tritter_mem.cli.main import COMMANDS, LazyCommand, app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICK = {"plan", "models", "gpus", "replay"}
"""They compute for a second at most, and need neither a GPU nor an environment of their own."""
GAP = {"…", "..."}


@dataclass
class Shown:
    """A command of an example, and the output that is shown below it."""

    page: Path
    words: list[str]
    output: Sequence[str] = ()


def blocks(page: Path, *languages: str) -> Iterator[str]:
    text = page.read_text(encoding="utf-8").replace(" \\\n", " ")  # one line, as a shell reads it
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if language in languages:
            yield body.replace("\\\n", " ")


def words_of(line: str) -> list[str]:
    """The words of the first command of a shell's line."""
    first = re.split(r"\s(?:[|>]|&&|\|\|)\s", line)[0]
    return shlex.split(first, comments=True)


def shown_in(page: Path) -> Iterator[Shown]:
    for body in blocks(page, "console"):
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            line, *output = part.splitlines()
            yield Shown(page, words_of(line), output)
    for body in blocks(page, "", "bash", "sh"):
        lines = body.splitlines()
        yield from (
            Shown(page, words_of(line)) for line in lines if line.startswith("tritter-mem ")
        )


def commands() -> list[Shown]:
    every = [shown for page in PAGES for shown in shown_in(page)]
    return [shown for shown in every if shown.words[:1] == ["tritter-mem"] and shown.words[1:]]


def is_quick(shown: Shown) -> bool:
    """Whether it shows its output and runs here: no Hub, and every file that it names is there."""
    name, *rest = shown.words[1:]
    named = [
        word for word in rest if "/" in word or re.search(r"\.(pickle|ya?ml|json|gguf)$", word)
    ]
    return bool(shown.output) and name in QUICK and all((ROOT / word).exists() for word in named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_have_the_options_that_are_shown(page: Path) -> None:
    for shown in commands():
        if shown.page == page and shown.words[1] in COMMANDS:
            context = LazyCommand(shown.words[1]).make_context("shown", shown.words[2:])
            assert context.command.name == shown.words[1]


QUICK_LINES = list(dict.fromkeys(shlex.join(one.words) for one in commands() if is_quick(one)))


@pytest.mark.parametrize("line", QUICK_LINES)
def test_quick_commands_print_what_is_shown(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    ran = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, words[1:])
    assert ran.exit_code in (0, 1), ran.output
    for shown in commands():
        if shown.words == words:
            assert_shown(shown.output, ran.output.splitlines())


def assert_shown(wanted: Sequence[str], printed: Sequence[str]) -> None:
    """Every line that is shown, in order and without others between them but at a gap."""
    at, anywhere = 0, False
    lines = [version_free(line) for line in printed]
    for line in filter(str.strip, map(version_free, wanted)):
        if line in GAP:
            anywhere = True
            continue
        while at < len(lines) and not lines[at]:
            at += 1
        assert line in (lines[at:] if anywhere else lines[at : at + 1]), "\n".join(printed)
        at, anywhere = lines.index(line, at) + 1, False


def version_free(line: str) -> str:
    return re.sub(r"^Python [\d.]+", "Python", line.rstrip())


def test_a_line_that_is_not_printed_is_found() -> None:
    printed = ["one", "", "two", "three"]
    assert_shown(["one", "…", "three"], printed)
    assert_shown(["one", "two"], printed)
    for wrong in (["one", "three"], ["…", "four"], ["three", "…", "one"]):
        with pytest.raises(AssertionError):
            assert_shown(wrong, printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_python_yaml_and_json_can_be_read(page: Path) -> None:
    for body in blocks(page, "python"):
        compile(body, str(page), "exec")
    for body in blocks(page, "yaml"):
        yaml.safe_load(body)
    for body in blocks(page, "json"):
        json.loads(body)


def test_readme_s_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TRITTER_MEM_HISTORY", "off")
    [code] = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102  (our own)
