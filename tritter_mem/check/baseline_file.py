"""The baseline's file: read with every problem named, written the same for the same content."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from tritter_mem.errors import InputError
from tritter_mem.input_files import is_there
from tritter_mem.results.baseline import SCHEMA, Baseline, Entry, Tolerance
from tritter_mem.results.from_json import (
    Problem,
    WrongDataError,
    from_plain,
    read_json_file,
    refuse,
    shown,
    values,
)
from tritter_mem.results.writing import write_text_atomically
from tritter_mem.text import printable
from tritter_mem.units import MAX_BYTES

WIDTH = 100
MERGED = (
    "if a merge left both versions, take either one and run tritter-mem check --update-baseline"
)


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        InputError: there is no such file, or it is no baseline; names every problem.
    """
    if not is_there(path):
        raise InputError(
            f"{printable(path)}: no such baseline; name it with --baseline, or create it: "
            "tritter-mem check --update-baseline --config NAME"
        )
    record = read_json_file(path, "a baseline", MERGED)
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        refuse(path, [("schema", f"got {shown(schema)}, expected '{SCHEMA}'")])
    try:
        baseline = from_plain(Baseline, record)
    except WrongDataError as error:
        refuse(path, error.problems)
        raise
    refuse(path, _implausible(baseline))
    return baseline


def _implausible(baseline: Baseline) -> Iterator[Problem]:
    """What has the right type and still cannot be."""
    tolerances = {"tolerance": baseline.tolerance} | {
        f"entries[{index}].tolerance": entry.tolerance
        for index, entry in enumerate(baseline.entries)
        if entry.tolerance is not None
    }
    for place, tolerance in tolerances.items():
        yield from _wrong_tolerance(place, tolerance)
    for index, entry in enumerate(baseline.entries):
        yield from _wrong_case(f"entries[{index}]", entry)
    for key, times in Counter(entry.key for entry in baseline.entries).items():
        if times > 1:
            yield "entries", f"got {times} of {printable(', '.join(key), 200)}; keep one"
    for place, value in values(baseline, ""):
        number = isinstance(value, int) and ".settings" not in place
        if number and not 0 <= value <= MAX_BYTES:
            allowed = "0 or more" if value < 0 else f"up to {MAX_BYTES:,}"
            yield place, f"got {shown(value)}, expected {allowed}"


def _wrong_case(place: str, entry: Entry) -> Iterator[Problem]:
    """An entry is of a configuration or of a command, and a command is rehearsed."""
    if bool(entry.command) == bool(entry.config):
        found = "config and command" if entry.command else "neither config nor command"
        yield place, f"got {found}, expected one of them"
    elif entry.command and entry.kind != "rehearsed":
        yield f"{place}.kind", f"got '{entry.kind}', expected 'rehearsed' of a command"


def _wrong_tolerance(place: str, tolerance: Tolerance) -> Iterator[Problem]:
    if not 0 <= tolerance.relative <= 1:
        yield f"{place}.relative", f"got {tolerance.relative}, expected 0 to 1, 0.01 is 1%"


def write_baseline(path: Path, baseline: Baseline) -> bool:
    """Write a baseline, unless the file has it already; whether it was written.

    Raises:
        OutputError: it cannot be written.
    """
    text = baseline_text(baseline)
    if is_there(path) and path.read_text(encoding="utf-8") == text:
        return False
    write_text_atomically(path, text)
    return True


def baseline_text(baseline: Baseline) -> str:
    """The file's text: entries and keys sorted, small things on one line, equal for equal content.

    What an entry does not say is left out.
    """
    entries = tuple(sorted(baseline.entries, key=lambda entry: entry.key))
    return _laid_out(_said(replace(baseline, entries=entries))) + "\n"


def _said(value: Any) -> Any:
    """Plain data, without the fields that are at a default of nothing: None, False, empty."""
    if is_dataclass(value):
        parts = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: _said(part) for f, part in parts if part or part != _default(f)}
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
