"""The checkpointing trade-off as a table: memory against recomputed work, the front marked."""

from __future__ import annotations

from tritter_mem.report.table import BLANK, UNKNOWN, Cell, Column, Row, Table, bytes_cell
from tritter_mem.report.words import number, printable, setting
from tritter_mem.results import CheckpointCase, Result


def checkpointing_table(result: Result, units: str) -> Table | None:
    """One row a policy, as `--checkpoint` takes it; None where the trade-off was not asked for."""
    if not result.checkpointing:
        return None
    measured = [c for c in result.checkpointing if c.measured_allocated_peak_bytes is not None]
    extra = _MEASURED if measured else ()
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
            _row(case, _own(result) == (case.policy, case.n), bool(extra), units)
            for case in result.checkpointing
        ],
    )


_MEASURED = (
    Column(label="Measured"),
    Column(label="Measured reserved", wide=True),
    Column(label="Seconds"),
)


def _measured_cells(case: CheckpointCase, units: str) -> tuple[Cell, ...]:
    """Peaks and seconds; out of memory leaves the seconds out."""
    seconds = case.measured_seconds
    return (
        bytes_cell(case.measured_allocated_peak_bytes, units),
        bytes_cell(case.measured_reserved_peak_bytes, units),
        UNKNOWN if seconds is None else Cell(text=number(seconds), value=seconds),
    )


def _row(case: CheckpointCase, own: bool, measured: bool, units: str) -> Row:
    name = f"{printable(case.policy, 40)}{f':{case.n}' if case.n > 1 else ''}"
    work = Cell(text=f"+{case.overhead:.1%}", value=case.overhead)
    return Row(
        cells=(
            Cell(text=f"{name} (this profile)" if own else name),
            bytes_cell(case.allocated_peak_bytes, units),
            bytes_cell(case.reserved_peak_bytes, units),
            bytes_cell(case.activations_peak_bytes, units),
            Cell(text=_operations(case.recomputed_flops), value=case.recomputed_flops),
            work,
            *(_measured_cells(case, units) if measured else ()),
            Cell(text="yes", tone="good") if case.on_front else BLANK,
        )
    )


def _operations(flops: int) -> str:
    """In the largest unit that leaves a figure before the point: `124 TFLOP`."""
    for prefix, size in (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if flops >= size:
            return f"{number(flops / size)} {prefix}FLOP"
    return f"{flops} FLOP"


def _own(result: Result) -> tuple[object, object]:
    """The profile's policy; its number counts where the policy takes one."""
    policy = setting(result.profile, "training.checkpointing.policy")
    n = setting(result.profile, "training.checkpointing.n")
    return policy, n if policy in ("every-nth", "segments") else 1
