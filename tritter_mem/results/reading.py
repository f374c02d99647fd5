"""Dataclasses from the plain data that travels between processes as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from tritter_mem.results.run import COMPONENTS, Result, Timeline
from tritter_mem.text import printable

T = TypeVar("T")


def from_plain(kind: type[T], data: Any) -> T:
    """Make a dataclass of what `dataclasses.asdict` made of one, lists in place of tuples.

    Raises:
        ValueError: the data is not of its fields' types; says where.
    """
    return cast("T", _read(kind, data, ""))


def _read(kind: Any, data: Any, place: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and data in arguments):
        return data
    if is_dataclass(kind):
        return _fields(cast("type", kind), data, place)
    if origin in (Union, UnionType):
        wanted = next(choice for choice in arguments if choice is not NoneType)
        return None if data is None else _read(wanted, data, place)
    if origin is tuple and isinstance(data, list | tuple):
        return tuple(_read(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(data))
    if origin is dict and isinstance(data, dict):
        return {key: _read(arguments[1], item, f"{place}.{key}") for key, item in data.items()}
    if type(data) is kind or (kind is float and type(data) is int):
        return kind(data)
    raise ValueError(
        f"{place or 'it'}: found {data!r:.60}, expected {getattr(kind, '__name__', kind)}"
    )


def _fields(kind: type, data: Any, place: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(
            f"{place or 'it'}: found {data!r:.60}, expected the fields of {kind.__name__}"
        )
    hints = get_type_hints(kind)
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    wrong = sorted(needed - set(data)) + sorted(set(data) - set(hints))
    if wrong:
        raise ValueError(
            f"{place or 'it'}: missing or unknown in {kind.__name__}: {', '.join(wrong)}"
        )
    return kind(**{name: _read(hints[name], item, f"{place}.{name}".lstrip("."))
                   for name, item in data.items()})  # fmt: skip


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
