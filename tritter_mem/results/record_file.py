"""Files of records (`tritter-mem.result/1`): read whole, or refused with every problem named."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tritter_mem.errors import InputError
from tritter_mem.results.from_json import (
    Problem,
    WrongDataError,
    from_plain,
    join,
    read_json_file,
    refuse,
    shown,
    values,
)
from tritter_mem.results.run import COMPONENTS, SCHEMA, ContextCurve, Result, Timeline
from tritter_mem.text import printable
from tritter_mem.units import MAX_BYTES

MAX_OPERATIONS = 1 << 100
SIGNED = ("headroom_bytes", "saves_bytes")


def read_results(path: Path) -> list[Result]:
    """Read one result or a list of them, as `--json` prints them.

    Raises:
        InputError: the file cannot be read, is no JSON or no result; names every problem.
    """
    parsed = read_json_file(path, "a result file", "name a file that `--json` or `--output` wrote")
    if parsed == []:
        refuse(path, [("", f"an empty list; expected records of {SCHEMA}")])
    alone = {"": parsed}
    records = {f"[{i}]": one for i, one in enumerate(parsed)} if isinstance(parsed, list) else alone
    refuse(path, (problem for at, record in records.items() for problem in _foreign(record, at)))
    results: dict[str, Result] = {}
    problems: list[Problem] = []
    for at, record in records.items():
        try:
            results[at] = from_plain(Result, record, at, newer=True)
        except WrongDataError as error:
            problems += error.problems
    refuse(path, problems)
    refuse(path, (problem for at, result in results.items() for problem in implausible(result, at)))
    return list(results.values())


def read_results_below(folder: Path) -> list[Result]:
    """Read every result in a folder and in those below it; other files are passed over.

    Raises:
        InputError: no file there is one.
    """
    found: list[Result] = []
    for path in sorted(folder.rglob("*.json")):
        with suppress(InputError):
            found += read_results(path)
    if not found:
        raise InputError(
            f"{printable(folder)}: holds no result; name a folder that `tritter-mem validate` wrote"
        )
    return found


def _foreign(record: Any, place: str) -> Iterator[Problem]:
    """Whether it is another kind of document."""
    if not isinstance(record, dict):
        yield place, f"got {_kind(record)}, expected a record of {SCHEMA}"
    elif record.get("schema") != SCHEMA:
        yield join(place, "schema"), f"got {shown(record.get('schema'))}, expected '{SCHEMA}'"


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def implausible(result: Result, place: str) -> Iterator[Problem]:
    """What has the right type and still cannot be.

    Memory is 0 to 2**62 bytes (what is left of a budget may be negative), a step takes 0 to 2**100
    operations, numbers are finite, a timeline has one number for each of its columns in every row,
    components are known ones, what is free of a segment has none, and curves share their contexts.
    """
    untimed: dict[str, Any] = {
        kind: replace(use, timeline=None)  # which has numbers of any sign
        for kind, use in result.by_kind().items()
    }
    for at, value in values(replace(result, **untimed), place):
        if wrong := _wrong(value, at):
            yield at, wrong
    for kind, found in result.by_kind().items():
        if found.timeline is not None:
            yield from _ragged(found.timeline, join(place, f"{kind}.timeline.rows"))
    yield from _uneven(result.context_curves, join(place, "context_curves"))


def _uneven(curves: Sequence[ContextCurve], place: str) -> Iterator[Problem]:
    allowed = "expected ascending contexts in tokens, the same in every curve, each with its bytes"
    for index, curve in enumerate(curves):
        contexts = [context for context, _ in curve.points]
        alike = contexts == [context for context, _ in curves[0].points]
        rising = contexts == sorted(set(contexts)) and contexts[:1] > [0]
        possible = all(0 <= needed <= MAX_BYTES for _, needed in curve.points)
        if not (alike and rising and possible):
            yield f"{place}[{index}].points", allowed


def _wrong(value: Any, place: str) -> str:
    """What is wrong with a single value; empty where it may be."""
    if isinstance(value, str) and place.endswith(".component") and value not in (*COMPONENTS, ""):
        return f"got {printable(value, 40)}, expected one of {', '.join(COMPONENTS)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"got {value}, expected a finite number"
    if isinstance(value, int):
        least, most, unit = _range(place)
        if unit and not least <= value <= most:
            return f"got {printable(value, 40)}, expected {least} to {most} {unit}"
    return ""


def _range(place: str) -> tuple[int, int, str]:
    """What a number may be, by the end of its key path; without a unit anything."""
    if place.endswith("_bytes"):
        return -MAX_BYTES if place.endswith(SIGNED) else 0, MAX_BYTES, "bytes"
    return 0, MAX_OPERATIONS, "operations" if place.endswith("flops") else ""


def _ragged(timeline: Timeline, place: str) -> Iterator[Problem]:
    columns = len(timeline.columns)
    for index, row in enumerate(timeline.rows):
        if len(row) != columns:
            yield f"{place}[{index}]", f"got {len(row)} numbers, expected {columns}"
