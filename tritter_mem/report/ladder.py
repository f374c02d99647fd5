"""The out-of-memory ladder as tables: every rung of one profile, and where each profile ends."""

from __future__ import annotations

from collections.abc import Sequence

from tritter_mem.report.table import (
    BLANK,
    UNKNOWN,
    Cell,
    Column,
    Row,
    Table,
    Tone,
    bytes_cell,
    headroom_cell,
)
from tritter_mem.report.words import KIND_LABELS, TEXT_LIMIT, name_of, printable
from tritter_mem.results import Ladder, LadderEnd, LadderStep, Result

_TONES: dict[LadderEnd, Tone] = {
    "fits": "good",
    "out of memory": "bad",
    "does not fit": "bad",
    "refused": "warn",
}


def ladder_tables(result: Result, units: str) -> list[Table]:
    """One table a ladder, one row a rung, to the first that fits; none where none was asked for."""
    return [_table(ladder, units) for ladder in result.ladders]


def _table(ladder: Ladder, units: str) -> Table:
    return Table(
        caption=f"Out-of-memory ladder, {ladder.kind}",
        columns=(
            Column(label="Rung", numeric=False),
            Column(label="Needs"),
            Column(label="Headroom"),
            Column(label="Allocated", wide=True),
            Column(label="Ended", numeric=False),
        ),
        rows=[_row(step, ladder.budget_bytes, units) for step in ladder.steps],
    )


def _row(step: LadderStep, budget_bytes: int, units: str) -> Row:
    needs = step.needs_bytes
    left = UNKNOWN if needs is None else headroom_cell(budget_bytes - needs, units, words=False)
    return Row(
        cells=(
            Cell(text=_name(step)),
            bytes_cell(needs, units),
            left,
            bytes_cell(step.allocated_bytes, units),
            Cell(text=_ended(step), tone=_TONES.get(step.ended, "")),
        )
    )


def _name(step: LadderStep) -> str:
    shown = printable(step.rung, TEXT_LIMIT)
    return f"{shown} (another result)" if step.changes_result else shown


def _ended(step: LadderStep) -> str:
    ended = "refused in training" if step.ended == "refused" else step.ended
    return printable(f"{ended} {step.detail}".strip(), TEXT_LIMIT)


def ladders_compared(results: Sequence[Result]) -> Table | None:
    """The rung on which each profile ends; None where no ladder was asked for."""
    kinds = [
        k for k in KIND_LABELS if any(ladder.kind == k for r in results for ladder in r.ladders)
    ]
    if not kinds:
        return None
    return Table(
        caption="Where the out-of-memory ladder ends",
        columns=(
            Column(label="Profile", numeric=False),
            *(Column(label=KIND_LABELS[kind], numeric=False) for kind in kinds),
        ),
        rows=[
            Row(cells=(Cell(text=name_of(result)), *(_end(result, kind) for kind in kinds)))
            for result in results
        ],
    )


def _end(result: Result, kind: str) -> Cell:
    ladder = next((ladder for ladder in result.ladders if ladder.kind == kind), None)
    if ladder is None:
        return BLANK
    step = ladder.ended_on
    return Cell(text="no rung fits", tone="bad") if step is None else Cell(
        text=_name(step), tone="good"
    )  # fmt: skip
