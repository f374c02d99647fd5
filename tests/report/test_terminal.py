"""The terminal: whole tables at 80 and 120 columns, plain where it must be, and quick to start.

`TRITTER_MEM_REFRESH_GOLDEN=1 pytest tests/report/test_terminal.py` writes the golden files anew.
"""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.records import (
    HOSTILE_NAMES,
    hostile,
    many,
    planned_7b,
    record,
    tiny_on_cpu,
    training_1b,
)
from tritter_mem.report.html import render_html
from tritter_mem.report.table import Bars
from tritter_mem.report.terminal import bar_text, make_console, render_results
from tritter_mem.results.run import Result

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    "planned": [planned_7b()],
    "measured": [tiny_on_cpu()],
    "training": [training_1b()],
    "compared": many(6),
    "empty": [record(planned_reason="the profile asks for nothing")],
}


def render(results: list[Result], width: int, units: str = "GiB") -> str:
    out = io.StringIO()
    console = make_console(out)
    console.width = width
    render_results(results, console, units)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, width: int) -> None:
    shown = "".join(f"{line.rstrip()}\n" for line in render(CASES[case], width).splitlines())
    path = GOLDEN / f"{case}-{width}.txt"
    if os.environ.get("TRITTER_MEM_REFRESH_GOLDEN"):
        path.write_text(shown)
    assert shown == path.read_text()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("case", CASES)
def test_no_line_is_wider_than_the_terminal(case: str, width: int) -> None:
    assert max(len(line) for line in render(CASES[case], width).splitlines()) <= width


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
@pytest.mark.parametrize("count", [1, 3])
def test_hostile_names_stay_text_within_the_terminal(name: str, count: int) -> None:
    shown = render([hostile(name)] * count, 80)
    assert not set(shown) & set("\x1b\x00\u202e\u2028")
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_piped_output_has_no_escape_sequences() -> None:
    assert "\x1b" not in render([training_1b()], 80)


def test_a_terminal_gets_colour_unless_it_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown() -> str:
        out = Terminal()
        render_results([planned_7b()], make_console(out))
        return out.getvalue()

    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[31m" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in shown()


def test_an_output_that_knows_ascii_alone_gets_ascii() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    render_results([planned_7b()], make_console(out))
    out.seek(0)
    shown = out.read()
    assert shown.isascii()
    assert "?" not in shown
    assert "KV cache        17.00 GiB  ##" in shown


def test_exact_bytes_are_for_json_only() -> None:
    assert "18253611008" not in render([planned_7b()], 120).replace(",", "")


def test_units_are_as_asked() -> None:
    assert "over the budget of 16.11 GB" in render([planned_7b()], 80, "GB")


@pytest.mark.parametrize("case", ["planned", "measured", "training", "compared"])
def test_terminal_and_page_use_the_same_words_in_the_same_order(case: str) -> None:
    shown, page = render(CASES[case], 200), render_html(CASES[case], plotlyjs="directory")
    headings = ["Component", "Allocated peak", "Headroom", "Differences over 2%", "Phase"]
    found = [heading for heading in headings if heading in shown]
    assert [page.index(f">{heading}<") for heading in found] == sorted(
        page.index(f">{heading}<") for heading in found
    )


@given(st.integers(0, 10**13), st.integers(1, 10**12), st.integers(1, 60))
def test_a_bar_is_as_long_as_its_number_and_never_longer_than_its_column(
    count: int, full: int, width: int
) -> None:
    drawn = bar_text(count, Bars(label="", full_bytes=full), width)
    assert len(drawn) == width
    assert abs(drawn.count("█") - min(width * count / full, width)) <= 1


def test_the_limit_stands_where_the_budget_is() -> None:
    bars = Bars(label="", full_bytes=20, limit_bytes=15)
    assert bar_text(20, bars, 20) == "██████████████│█████"
    assert bar_text(5, bars, 20) == "█████         │     "


def test_drawing_imports_only_what_tables_need() -> None:
    code = (
        "import sys, io\n"
        "from tests.report.records import planned_7b\n"
        "from tritter_mem.report.terminal import make_console, render_results\n"
        "render_results([planned_7b()], make_console(io.StringIO()))\n"
        "heavy = {'torch', 'pandas', 'plotly', 'numpy', 'jinja2', 'pydantic', 'pygments',\n"
        "         'markdown_it', 'rich.markdown', 'rich.syntax', 'rich.progress'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
