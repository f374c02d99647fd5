"""The ladder's tables: every rung of a profile, and on which each of several ends."""

from __future__ import annotations

import io
from dataclasses import replace

from tests.report.records import planned_7b, training_1b
from tritter_mem.report.html import render_html
from tritter_mem.report.terminal import make_console, render_results
from tritter_mem.report.trade_offs import ladder_tables, ladders_compared
from tritter_mem.results.run import Ladder, LadderStep, Result
from tritter_mem.units import GiB

CURED = Ladder(
    kind="simulated",
    budget_bytes=15 * GiB,
    steps=(
        LadderStep(rung="as it is", settings={}, ended="does not fit", needs_bytes=21 * GiB),
        LadderStep(
            rung="4 of 8 sequences at a time", settings={"micro_batch": 4}, ended="fits",
            needs_bytes=13 * GiB, allocated_bytes=12 * GiB,
        ),
    ),
)  # fmt: skip
LOST = Ladder(
    kind="measured",
    budget_bytes=15 * GiB,
    steps=(
        LadderStep(
            rung="as it is", settings={}, ended="out of memory", detail="in backward: mm\x1b[2J",
            allocated_bytes=14 * GiB,
        ),
        LadderStep(
            rung="truncate to the last 4096 tokens", settings={"window": 4096}, ended="refused",
            changes_result=True,
        ),
    ),
)  # fmt: skip


def cured() -> Result:
    return replace(training_1b(), ladders=(CURED, LOST))


def texts(result: Result) -> list[list[list[str]]]:
    return [[[c.text for c in row.cells] for row in t.rows] for t in ladder_tables(result, "GiB")]


def test_each_rung_has_a_row_with_what_it_needs_and_leaves() -> None:
    simulated, measured = texts(cured())
    assert simulated == [
        ["as it is", "21.00 GiB", "−6.00 GiB", "–", "does not fit"],  # noqa: RUF001
        ["4 of 8 sequences at a time", "13.00 GiB", "2.00 GiB", "12.00 GiB", "fits"],
    ]
    assert measured[0][-1] == r"out of memory in backward: mm\x1b[2J"
    assert measured[1][0] == "truncate to the last 4096 tokens (another result)"
    assert measured[1][-1] == "refused in training"


def test_several_profiles_are_compared_by_where_they_end() -> None:
    table = ladders_compared([cured(), replace(planned_7b(), ladders=(CURED,))])
    assert table is not None
    assert [column.label for column in table.columns] == ["Profile", "Simulated", "Measured"]
    assert [[cell.text for cell in row.cells[1:]] for row in table.rows] == [
        ["4 of 8 sequences at a time", "no rung fits"],
        ["4 of 8 sequences at a time", ""],
    ]


def test_without_a_ladder_there_is_no_table() -> None:
    assert ladder_tables(planned_7b(), "GiB") == []
    assert ladders_compared([planned_7b(), training_1b()]) is None


def test_terminal_and_page_show_the_ladder() -> None:
    out = io.StringIO()
    render_results([cured()], make_console(out))
    assert "Out-of-memory ladder, simulated" in out.getvalue()
    out = io.StringIO()
    render_results([cured(), planned_7b()], make_console(out))
    assert "Where the out-of-memory ladder stops" in out.getvalue()
    page = render_html([cured()], plotlyjs="cdn")
    assert "4 of 8 sequences at a time" in page
    assert "\x1b" not in page
