"""What only a measured run tells: the allocator's counts, the driver's, and the spread of runs."""

from __future__ import annotations

from collections.abc import Iterator

from tritter_mem.report.table import Cell, Column, Row, Table, bytes_cell
from tritter_mem.report.words import number, printable
from tritter_mem.results import DeviceRun, Estimate, Result, RunFigures, Spread
from tritter_mem.units import format_bytes

Line = tuple[str, Cell]


def measured_table(result: Result, units: str) -> Table | None:
    """One row a figure; what was not read is left out. None where there is nothing to say."""
    estimate = result.measured
    if estimate is None:
        return None
    lines = [*_run_lines(estimate, units), *_spread_lines(estimate.spread, units)]
    if not lines:
        return None
    return Table(
        caption=f"Measured on {printable(estimate.device, 40)}",
        columns=(Column(label="Figure", numeric=False), Column(label="Value")),
        rows=[Row(cells=(Cell(text=name), cell)) for name, cell in lines],
    )


def _run_lines(estimate: Estimate, units: str) -> Iterator[Line]:
    run = estimate.run
    if run is None:
        return
    for name, count in _sizes(run, estimate.context_bytes):
        if count is not None:
            yield name, bytes_cell(count, units)
    counts = {
        "Segments taken from the driver": run.allocator.segment_allocations,
        "Segments given back": run.allocator.segment_releases,
        "Requests served after a retry": run.allocator.retries,
    }
    for name, calls in counts.items():
        yield name, Cell(text=f"{calls:,}", value=calls)


def _sizes(run: DeviceRun, context_bytes: int | None) -> Iterator[tuple[str, int | None]]:
    yield "Requested peak, before rounding", run.allocator.requested_peak_bytes
    yield "Active peak", run.allocator.active_peak_bytes
    yield "Peak of free parts of segments", run.allocator.inactive_split_peak_bytes
    yield "Cap on what PyTorch may reserve", run.allocator_limit_bytes
    yield "CUDA context as it was made", run.context_created_bytes
    yield "CUDA context after the first kernel", run.context_first_kernel_bytes
    read = run.context_first_kernel_bytes is not None  # else it is what is assumed for the card
    yield "CUDA context at the end", context_bytes if read else None
    yield "This process at the end, by the driver", run.process_bytes
    yield "All processes at the end, by the driver", run.device_used_bytes
    yield "Other processes before, not counted", run.other_processes_bytes


def _spread_lines(spread: Spread | None, units: str) -> Iterator[Line]:
    """`Allocated peak over 5 runs`: the least, the median, the most."""
    if spread is None:
        return
    three = (spread.minimum, spread.median, spread.maximum)
    runs = f"over {spread.runs} runs (least, median, most)"
    yield f"Allocated peak {runs}", _bytes(three, "allocated_peak_bytes", units)
    if spread.median.reserved_peak_bytes is not None:
        yield f"Reserved peak {runs}", _bytes(three, "reserved_peak_bytes", units)
    seconds = ", ".join(number(figures.seconds) for figures in three)
    yield f"Seconds {runs}", Cell(text=seconds, value=spread.median.seconds)


def _bytes(three: tuple[RunFigures, ...], figure: str, units: str) -> Cell:
    sizes = [getattr(figures, figure) or 0 for figures in three]
    if len(set(sizes)) == 1:
        return Cell(text=f"{format_bytes(sizes[0], units)} each", value=sizes[0])
    return Cell(text=", ".join(format_bytes(s, units) for s in sizes), value=sizes[1])
