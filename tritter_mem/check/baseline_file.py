"""The baseline's file: read with every problem named, written the same for the same content."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import Field, asdict, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritter_mem.errors import InputError
from tritter_mem.results.baseline import SCHEMA, Baseline, Tolerance
from tritter_mem.text import printable
from tritter_mem.units import MiB

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

MAX_FILE_BYTES = 16 * MiB
MAX_PROBLEMS = 20
WIDTH = 100


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        InputError: there is no such file, or it is no baseline; names every problem.
    """
    text, shown = _text(path), printable(path)
    problems = _wrong_schema(text, shown)
    if not problems:
        baseline, problems = _validated(text)
        if baseline is not None and not (problems := list(_implausible(baseline))):
            return baseline
    lines = [f"{shown}: {problem}" for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"{shown}: and {len(problems) - MAX_PROBLEMS} more problems")
    raise InputError(*lines)


def _text(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(
            f"{printable(path)}: no such baseline; name it by --baseline, or make it: "
            "tritter-mem check --update-baseline --config NAME"
        ) from error
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    if len(text) > MAX_FILE_BYTES:
        most = MAX_FILE_BYTES // MiB
        raise InputError(f"{printable(path)}: too large; a baseline has at most {most} MiB")
    return text


def _wrong_schema(text: bytes, shown: str) -> list[str]:
    from pydantic_core import from_json

    try:
        record = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InputError(
            f"{shown}: no JSON: {error}; where a merge left both versions, take either and run "
            "tritter-mem check --update-baseline"
        ) from error
    found = record.get("schema") if isinstance(record, dict) else None
    if found == SCHEMA:
        return []
    return [f"schema: found {printable(repr(found), 80)}, expected '{SCHEMA}'"]


@cache
def _adapter() -> TypeAdapter[tuple[Baseline]]:
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return TypeAdapter(tuple[Baseline], config=config)


def _validated(text: bytes) -> tuple[Baseline | None, list[str]]:
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(b"[" + text + b"]")[0], []
    except ValidationError as error:
        return None, [_problem(found) for found in error.errors()]


def _problem(found: ErrorDetails) -> str:
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{printable(part, 80)}"
        for part in found["loc"][1:]
    ).removeprefix(".")
    if found["type"] == "missing":
        return f"{place}: missing"
    if found["type"] == "unexpected_keyword_argument":
        return f"{place}: unknown key"
    expected = found["msg"].removeprefix("Input should be ")
    return f"{place}: found {printable(repr(found['input']), 80)}, expected {expected}"


def _implausible(baseline: Baseline) -> Iterator[str]:
    """What has the right type and still cannot be."""
    places = {"tolerance": baseline.tolerance}
    for index, entry in enumerate(baseline.entries):
        if entry.tolerance is not None:
            places[f"entries[{index}].tolerance"] = entry.tolerance
    for place, tolerance in places.items():
        yield from _wrong_tolerance(place, tolerance)
    for key, times in Counter(entry.key for entry in baseline.entries).items():
        if times > 1:
            name = printable(", ".join(key), 200)
            yield f"entries: found {times} of {name}; keep one"
    yield from _negative(asdict(baseline), "")


def _wrong_tolerance(place: str, tolerance: Tolerance) -> Iterator[str]:
    if not (math.isfinite(tolerance.relative) and 0 <= tolerance.relative <= 1):
        yield f"{place}.relative: found {tolerance.relative}; allowed: 0 to 1, 0.01 is 1%"


def _negative(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _negative(part, f"{place}.{printable(key, 80)}".removeprefix("."))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _negative(part, f"{place}[{index}]")
    elif isinstance(value, int) and value < 0 and ".settings" not in place:
        yield f"{place}: found {value}; allowed: 0 or more"


def baseline_text(baseline: Baseline) -> str:
    """The file's text: entries and keys sorted, small things on one line, equal for equal content.

    What an entry does not say is left out.
    """
    entries = tuple(sorted(baseline.entries, key=lambda entry: entry.key))
    return _laid_out(_said(replace(baseline, entries=entries))) + "\n"


def _said(value: Any) -> Any:
    """Plain data, without the fields that are at a default of nothing: None, False, empty."""
    if is_dataclass(value):
        told = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: _said(part) for f, part in told if part or part != _default(f)}
    if isinstance(value, dict):
        return {key: _said(part) for key, part in value.items()}
    return [_said(part) for part in value] if isinstance(value, list | tuple) else value


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def _laid_out(value: Any, indent: str = "") -> str:
    """JSON with sorted keys; what fits on a line is on one, and so is a flat mapping in a list."""
    line = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if not isinstance(value, dict | list) or (indent and len(indent) + len(line) < WIDTH):
        return line
    deeper = f"{indent}  "
    if isinstance(value, list):
        parts = [_row(part, deeper) for part in value]
        return f"[\n{_joined(parts, deeper)}\n{indent}]"
    parts = [f"{json.dumps(key)}: {_laid_out(value[key], deeper)}" for key in sorted(value)]
    return f"{{\n{_joined(parts, deeper)}\n{indent}}}"


def _row(value: Any, indent: str) -> str:
    parts = value.values() if isinstance(value, dict) else ()
    if any(isinstance(part, dict | list) for part in parts):
        return _laid_out(value, indent)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _joined(parts: list[str], indent: str) -> str:
    return ",\n".join(f"{indent}{part}" for part in parts)
