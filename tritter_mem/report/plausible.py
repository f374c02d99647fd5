"""What in a record has the right type and still cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tritter_mem.report.words import printable
from tritter_mem.results import Result, Timeline

MAX_MEMORY_BYTES = 1 << 62
SIGNED = ("headroom_bytes", "saves_bytes")


def implausible(result: Result, place: str) -> Iterator[tuple[str, str]]:
    """Each key path under `place` with what is wrong there.

    Memory is 0 to 2**62 bytes (what is left of a budget may be negative), numbers are finite, and
    a timeline has one number for each of its columns in every row.
    """
    yield from _values(result.to_dict(), place)
    for kind, estimate in result.estimates().items():
        if estimate.timeline is not None:
            yield from _ragged(estimate.timeline, join(place, f"{kind}.timeline.rows"))


def _values(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _values(part, join(place, printable(key, 80)))
    elif isinstance(value, list | tuple) and not place.endswith(".rows"):
        for index, part in enumerate(value):
            yield from _values(part, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, f"found {value}, expected a finite number"
    elif isinstance(value, int) and place.endswith("_bytes"):
        least = -MAX_MEMORY_BYTES if place.endswith(SIGNED) else 0
        if not least <= value <= MAX_MEMORY_BYTES:
            found = printable(value, 40)
            yield place, f"found {found}, expected {least} to {MAX_MEMORY_BYTES} bytes"


def _ragged(timeline: Timeline, place: str) -> Iterator[tuple[str, str]]:
    columns = len(timeline.columns)
    for index, row in enumerate(timeline.rows):
        if len(row) != columns:
            yield f"{place}[{index}]", f"found {len(row)} numbers, expected {columns}"


def join(place: str, key: str) -> str:
    """A key path one key longer."""
    return f"{place}.{key}" if place else key
