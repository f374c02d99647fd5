"""What memory can be bought with: checkpointing policies, and the out-of-memory ladder."""

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
from tritter_mem.report.words import KIND_LABELS, TEXT_LIMIT, name_of, number, setting
from tritter_mem.results.run import CheckpointCase, Ladder, LadderEnd, LadderStep, Result
from tritter_mem.text import printable

_MEASURED_COLUMNS = (
    Column(label="Measured"),
    Column(label="Measured reserved", wide=True),
    Column(label="Seconds"),
)


def checkpointing_table(result: Result, units: str) -> Table | None:
    """One row a policy, as `--checkpoint` takes it; None where the trade-off was not asked for."""
    if not result.checkpointing:
        return None
    measured = [c for c in result.checkpointing if c.measured_allocated_peak_bytes is not None]
    extra = _MEASURED_COLUMNS if measured else ()
    return Table(
        caption=f"Checkpointing trade-off, simulated{' and measured' if measured else ''}",
        columns=(
            Column(label="Policy", numeric=False),
            Column(label="Allocated"),
            Column(label="Reserved", wide=True),
            Column(label="Activations"),
            Column(label="Recomputed", wide=True),
            Column(label="Work"),
            *extra,
            Column(label="Pareto front", numeric=False),
        ),
        rows=[
            _policy_row(case, _own_policy(result) == (case.policy, case.n), bool(extra), units)
            for case in result.checkpointing
        ],
    )


def _measured_cells(case: CheckpointCase, units: str) -> tuple[Cell, ...]:
    """Peaks and seconds; out of memory leaves the seconds out."""
    seconds = case.measured_seconds
    return (
        bytes_cell(case.measured_allocated_peak_bytes, units),
        bytes_cell(case.measured_reserved_peak_bytes, units),
        UNKNOWN if seconds is None else Cell(text=number(seconds), value=seconds),
    )


def _policy_row(case: CheckpointCase, own: bool, measured: bool, units: str) -> Row:
    name = printable(case.name, 50)
    work = Cell(text=f"+{case.overhead:.1%}", value=case.overhead)
    return Row(
        cells=(
            Cell(text=f"{name} (this profile)" if own else name),
            bytes_cell(case.allocated_peak_bytes, units),
            bytes_cell(case.reserved_peak_bytes, units),
            bytes_cell(case.activations_peak_bytes, units),
            Cell(text=_flop_words(case.recomputed_flops), value=case.recomputed_flops),
            work,
            *(_measured_cells(case, units) if measured else ()),
            Cell(text="yes", tone="good") if case.on_front else BLANK,
        )
    )


def _flop_words(flops: int) -> str:
    """In the largest unit that leaves a figure before the point: `124 TFLOP`."""
    for prefix, size in (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if flops >= size:
            return f"{number(flops / size)} {prefix}FLOP"
    return f"{flops} FLOP"


def _own_policy(result: Result) -> tuple[object, object]:
    """The profile's policy; its number counts where the policy takes one."""
    policy = setting(result.profile, "training.checkpointing.policy")
    n = setting(result.profile, "training.checkpointing.n")
    return policy, n if policy in ("every-nth", "segments") else 1


_END_TONES: dict[LadderEnd, Tone] = {
    "fits": "good",
    "out of memory": "bad",
    "does not fit": "bad",
    "refused": "warn",
}


def ladder_tables(result: Result, units: str) -> list[Table]:
    """One table a ladder, one row a rung, to the first that fits; none where none was asked for."""
    return [_ladder_table(ladder, units) for ladder in result.ladders]


def _ladder_table(ladder: Ladder, units: str) -> Table:
    return Table(
        caption=f"Out-of-memory ladder, {ladder.kind}",
        columns=(
            Column(label="Rung", numeric=False),
            Column(label="Needs"),
            Column(label="Headroom"),
            Column(label="Allocated", wide=True),
            Column(label="Ended", numeric=False),
        ),
        rows=[_rung_row(step, ladder.budget_bytes, units) for step in ladder.steps],
    )


def _rung_row(step: LadderStep, budget_bytes: int, units: str) -> Row:
    needs = step.needs_bytes
    left = UNKNOWN if needs is None else headroom_cell(budget_bytes - needs, units, words=False)
    return Row(
        cells=(
            Cell(text=_rung_name(step)),
            bytes_cell(needs, units),
            left,
            bytes_cell(step.allocated_bytes, units),
            Cell(text=_how_it_ended(step), tone=_END_TONES.get(step.ended, "")),
        )
    )


def _rung_name(step: LadderStep) -> str:
    shown = printable(step.rung, TEXT_LIMIT)
    return f"{shown} (another result)" if step.changes_result else shown


def _how_it_ended(step: LadderStep) -> str:
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
        caption="Where the out-of-memory ladder stops",
        columns=(
            Column(label="Profile", numeric=False),
            *(Column(label=KIND_LABELS[kind], numeric=False) for kind in kinds),
        ),
        rows=[
            Row(cells=(Cell(text=name_of(result)), *(_end_cell(result, kind) for kind in kinds)))
            for result in results
        ],
    )


def _end_cell(result: Result, kind: str) -> Cell:
    ladder = next((ladder for ladder in result.ladders if ladder.kind == kind), None)
    if ladder is None:
        return BLANK
    step = ladder.ended_on
    return Cell(text="no rung fits", tone="bad") if step is None else Cell(
        text=_rung_name(step), tone="good"
    )  # fmt: skip
