"""What in a record has the right type and still cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tritter_mem.report.words import printable
from tritter_mem.results import COMPONENTS, Result, Timeline

MAX_MEMORY_BYTES = 1 << 62
MAX_OPERATIONS = 1 << 100
SIGNED = ("headroom_bytes", "saves_bytes")


def implausible(result: Result, place: str) -> Iterator[tuple[str, str]]:
    """Each key path under `place` with what is wrong there.

    Memory is 0 to 2**62 bytes (what is left of a budget may be negative), a step takes 0 to 2**100
    operations, numbers are finite, a timeline has one number for each of its columns in every row,
    and components are known ones; what is free of a segment has none.
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
    elif wrong := _wrong(value, place):
        yield place, wrong


def _wrong(value: Any, place: str) -> str:
    """What is wrong with a single value; empty where it may be."""
    if isinstance(value, str) and place.endswith(".component") and value not in (*COMPONENTS, ""):
        return f"found {printable(value, 40)}, expected one of {', '.join(COMPONENTS)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"found {value}, expected a finite number"
    if isinstance(value, int):
        least, most, unit = _range(place)
        if unit and not least <= value <= most:
            return f"found {printable(value, 40)}, expected {least} to {most} {unit}"
    return ""


def _range(place: str) -> tuple[int, int, str]:
    """What a number may be, by the end of its key path; without a unit anything."""
    if place.endswith("_bytes"):
        return -MAX_MEMORY_BYTES if place.endswith(SIGNED) else 0, MAX_MEMORY_BYTES, "bytes"
    return 0, MAX_OPERATIONS, "operations" if place.endswith("flops") else ""


def _ragged(timeline: Timeline, place: str) -> Iterator[tuple[str, str]]:
    columns = len(timeline.columns)
    for index, row in enumerate(timeline.rows):
        if len(row) != columns:
            yield f"{place}[{index}]", f"found {len(row)} numbers, expected {columns}"


def join(place: str, key: str) -> str:
    """A key path one key longer."""
    return f"{place}.{key}" if place else key
