"""A validation as one table: each case's peaks, and how far plan and simulation are off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tritter_mem.report.differences import tone_of
from tritter_mem.report.table import BLANK, UNKNOWN, Cell, Column, Row, Table, Tone, bytes_cell
from tritter_mem.report.terminal import STYLES, render_line, render_table
from tritter_mem.report.words import NAME_LIMIT, TEXT_LIMIT, label, percent
from tritter_mem.results.run import Difference, Kind, KindPair
from tritter_mem.results.validation import PREDICTED, Status, Validated, Validation, pairs_with
from tritter_mem.results.verdict import RESERVED_TOLERANCE, TOLERANCES, tolerance_of
from tritter_mem.text import printable
from tritter_mem.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

TONES: dict[Status, Tone] = {
    "within": "good",
    "beyond": "bad",
    "out of memory": "bad",
    "not measured": "warn",
}
RESERVED = "  reserved"
ON_CPU = (
    "the CPU has no libraries' workspaces and no allocator that rounds: the comparison leaves both "
    "out, and what is reserved"
)


def render_validation(validation: Validation, console: Console, units: str = "GiB") -> None:
    """Draw the table, what is wrong with which case, and how many are within.

    Args:
        validation: what to draw.
        console: where.
        units: `GiB` for binary, `GB` for decimal units.
    """
    if validation.cases:
        render_table(validation_table(validation, units), console)
    render_line(console, "")
    for text, tone in remarks(validation, units):
        render_line(console, text, STYLES[tone])


def validation_table(validation: Validation, units: str) -> Table:
    """Two rows a case: the allocated peak under its name and, where it is known, the reserved."""
    kind = validation.ran_as
    return Table(
        caption=f"Allocated and reserved peaks against {printable(validation.device, NAME_LIMIT)}",
        columns=(
            Column(label="Case", numeric=False),
            *(Column(label=name.capitalize()) for name in (*PREDICTED, kind)),
            *(Column(label=f"vs {first}") for first in PREDICTED),
        ),
        rows=[row for case in validation.cases for row in _rows(case, kind, units)],
    )


def _rows(case: Validated, kind: Kind, units: str) -> Iterator[Row]:
    name = Cell(text=printable(case.name, NAME_LIMIT), tone=TONES[case.status])
    kinds = (*PREDICTED, kind)
    if not case.peaks:
        yield Row(cells=(name, *[UNKNOWN] * len(kinds), *[BLANK] * len(PREDICTED)))
    for peak in case.peaks:
        first = name if peak.name == "allocated_peak" else Cell(text=RESERVED)
        sizes = peak.sizes()
        cells = (bytes_cell(sizes[name], units) for name in kinds)
        yield Row(cells=(first, *cells, *(_error(peak, pair) for pair in pairs_with(kind))))


def _error(peak: Difference, pair: KindPair) -> Cell:
    ratio = peak.ratio(pair)
    if ratio is None:
        return BLANK
    tone = tone_of(ratio, tolerance_of(peak.name, pair))
    return Cell(text=percent(ratio), value=ratio, tone=tone)


def remarks(validation: Validation, units: str) -> Iterator[tuple[str, Tone]]:
    """A line for each case that is not within, and the count."""
    for case in validation.cases:
        for text in _remarks_on(case, units):
            yield f"{printable(case.name, NAME_LIMIT)}: {text}", TONES[case.status]
    for one in validation.left_out:
        needs, budget = (format_bytes(size, units) for size in (one.needs_bytes, one.budget_bytes))
        yield f"{printable(one.name, NAME_LIMIT)}: skipped: needs {needs} of {budget}", "muted"
    if validation.device == "cpu":
        yield ON_CPU, "muted"
    yield _count(validation), ""


def _remarks_on(case: Validated, units: str) -> Iterator[str]:
    if case.status == "beyond":
        for peak, pair, ratio in case.beyond():
            allowed = f"{tolerance_of(peak.name, pair):.1%}"
            what = f"{label(peak.name)}, {pair[1]} against {pair[0]}"
            yield f"{what}: {percent(ratio)}, beyond {allowed}{_pressed(case, peak)}"
    elif case.status == "out of memory":
        yield _out_of_memory(case, units)
    elif case.status == "not measured":
        reason = case.result.measured_reason if case.result else None
        why = case.problem or reason or "nothing to compare"
        yield f"not measured: {printable(why, TEXT_LIMIT)}"


def _pressed(case: Validated, peak: Difference) -> str:
    """A cap that made the allocator give memory back lowers what it reserves."""
    run = case.ran.run if case.ran else None
    retries = run.allocator.retries if run and peak.name == "reserved_peak" else 0
    return f"; {retries} requests were served after a retry, under the cap" if retries else ""


def _out_of_memory(case: Validated, units: str) -> str:
    refused = case.ran.out_of_memory if case.ran else None
    if refused is None:
        return "out of memory"
    asked, limit = (format_bytes(n, units) for n in (refused.requested_bytes, refused.limit_bytes))
    where = printable(refused.phase or "load", NAME_LIMIT)
    return f"out of memory in {where}: {asked} refused at a limit of {limit}"


def _count(validation: Validation) -> str:
    cases = validation.cases
    within = sum(case.status == "within" for case in cases)
    kept = sum(case.kept for case in cases)
    pairs = pairs_with(validation.ran_as)
    allowed = ", ".join(f"{first} {TOLERANCES[first, last]:.1%}" for first, last in pairs)
    parts = [
        f"{within} of {len(cases)} within the tolerances ({allowed}; "
        f"reserved {RESERVED_TOLERANCE:.1%})",
        *([f"{kept} kept from an earlier run; --again measures them again"] if kept else []),
        *(["interrupted: run it again to continue"] if validation.interrupted else []),
    ]
    return "; ".join(parts)
