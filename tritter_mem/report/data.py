"""Results as data to take elsewhere: a tidy CSV, one number a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from tritter_mem.report.tables import TOTALS, total_bytes
from tritter_mem.report.words import printable
from tritter_mem.results import Estimate, Result

COLUMNS = ("profile", "kind", "device", "group", "name", "bytes")
Number = tuple[str, str, int]


def to_csv(results: Sequence[Result]) -> str:
    """Every component, total and phase of every kind of number, in bytes.

    Text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in results:
        for kind, estimate in result.estimates().items():
            place = (spreadsheet_text(result.name), kind, spreadsheet_text(estimate.device))
            writer.writerows((*place, *number) for number in numbers(estimate))
    return out.getvalue()


def numbers(estimate: Estimate) -> Iterator[Number]:
    """Group, name and bytes of every component, total and phase."""
    yield from (("component", name, size) for name, size in estimate.components.items().items())
    for name in TOTALS:
        if (size := total_bytes(estimate, name)) is not None:
            yield "total", name, size
    for phase in estimate.phases:
        yield "phase allocated", spreadsheet_text(phase.name), phase.allocated_peak_bytes
        if phase.reserved_peak_bytes is not None:
            yield "phase reserved", spreadsheet_text(phase.name), phase.reserved_peak_bytes


def spreadsheet_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown
