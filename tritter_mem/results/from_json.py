"""Dataclasses from outside data: JSON of a file, of a line, of another process.

Every problem of a document is named with its key path. Text, JSON and types are all that is looked
at here; what is of the right type and still cannot be is for the reader of that kind of document.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from tritter_mem.errors import InputError
from tritter_mem.input_files import open_input
from tritter_mem.text import printable
from tritter_mem.units import MiB, format_bytes

T = TypeVar("T")
Problem = tuple[str, str]
"""A key path, empty for the whole document, and what is wrong there."""

MAX_FILE_BYTES = 64 * MiB
MAX_PROBLEMS = 20
_EXPECTED = {int: "a valid integer", float: "a valid number", str: "a valid string",
             bool: "true or false"}  # fmt: skip


class WrongDataError(ValueError):
    """Data that is no such dataclass; `problems` holds everything that is wrong."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(line_of, self.problems)))


def line_of(problem: Problem) -> str:
    """`planned.context_bytes: missing`."""
    place, what = problem
    return f"{place}: {what}" if place else what


def join(place: str, key: str) -> str:
    """A key path one key longer."""
    return f"{place}.{key}" if place else key


def parse_json(text: bytes | str) -> Any:
    """Parse JSON: no NaN, no infinity, no half of a surrogate pair, which no output can show.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if (b"\\ud" if isinstance(text, bytes) else "\\ud") in text.lower():  # type: ignore[operator]
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"got {name}, expected a finite number")


def read_json_file(path: Path, what: str, advice: str) -> Any:
    """Read a JSON file.

    Args:
        path: of at most 64 MiB.
        what: what it should be, such as `a baseline`.
        advice: what to do where it is no JSON.

    Raises:
        InputError: it cannot be read, is too large, or is no JSON.
    """
    try:
        with open_input(path) as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    if len(text) > MAX_FILE_BYTES:
        most = format_bytes(MAX_FILE_BYTES)
        raise InputError(f"{printable(path)}: too large; {what} has at most {most}")
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{printable(path)}: no JSON: {printable(error)}; {advice}") from error


def refuse(path: Path, problems: Iterable[Problem]) -> None:
    """Raise for what is wrong in a file, if anything.

    Raises:
        InputError: a line for each problem, and a count of those beyond 20.
    """
    lines = [f"{printable(path)}: {line_of(problem)}" for problem in problems]
    if len(lines) > MAX_PROBLEMS:
        rest = f"{printable(path)}: and {len(lines) - MAX_PROBLEMS} more problems"
        lines = [*lines[:MAX_PROBLEMS], rest]
    if lines:
        raise InputError(*lines)


def from_plain(kind: type[T], data: Any, place: str = "", *, newer: bool = False) -> T:
    """Make a dataclass of what `dataclasses.asdict` made of one, lists in place of tuples.

    Args:
        kind: the dataclass.
        data: parsed JSON.
        place: the key path of `data` in its document.
        newer: pass over unknown keys, which a newer version may have written.

    Raises:
        WrongDataError: the data is not of its fields' types; names everything that is wrong.
    """
    reader = _PlainReader(newer)
    made = reader.read(kind, data, place)
    if reader.problems:
        raise WrongDataError(reader.problems)
    return cast("T", made)


class _PlainReader:
    """Reads values, and collects what is wrong with them; a wrong value is read as None."""

    def __init__(self, newer: bool) -> None:
        self.problems: list[Problem] = []
        self._newer = newer

    def read(self, kind: Any, data: Any, place: str) -> Any:
        if kind in _EXPECTED:
            return self._single(kind, data, place)
        if is_dataclass(kind):
            return self._fields(cast("type", kind), data, place)
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is tuple:
            return self._tuple(arguments, data, place)
        if origin is dict:
            return self._dict(arguments[1], data, place)
        if origin in (Union, UnionType):
            choice = next(choice for choice in arguments if choice is not NoneType)
            return None if data is None else self.read(choice, data, place)
        return self._single(kind, data, place)

    def _wrong(self, place: str, data: Any, expected: str) -> Any:
        self.problems.append((place, f"got {shown(data)}, expected {expected}"))

    def _single(self, kind: Any, data: Any, place: str) -> Any:
        if kind is Any:
            return data
        if get_origin(kind) is Literal:
            allowed = get_args(kind)
            return data if data in allowed else self._wrong(place, data, _words(allowed))
        if kind is float and type(data) in (int, float):
            return float(data) if _finite(data) else self._wrong(place, data, "a finite number")
        if type(data) is kind:
            return data
        return self._wrong(place, data, _EXPECTED.get(kind, kind.__name__))

    def _tuple(self, kinds: tuple[Any, ...], data: Any, place: str) -> Any:
        if not isinstance(data, list | tuple):
            return self._wrong(place, data, "a list")
        if kinds[-1] is ...:
            # Most of a record are rows of numbers: they need no key path each.
            if kinds[0] is float and all(type(x) in (int, float) and _finite(x) for x in data):
                return tuple(map(float, data))
            kinds = kinds[:1] * len(data)
        elif len(data) != len(kinds):
            return self._wrong(place, data, f"{len(kinds)} items")
        pairs = zip(kinds, data, strict=True)
        return tuple(self.read(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(pairs))

    def _dict(self, kind: Any, data: Any, place: str) -> Any:
        if not isinstance(data, dict):
            return self._wrong(place, data, "an object")
        return {
            key: self.read(kind, item, join(place, printable(key, 80)))
            for key, item in data.items()
        }

    def _fields(self, kind: type, data: Any, place: str) -> Any:
        if not isinstance(data, Mapping):
            return self._wrong(place, data, f"the fields of {kind.__name__}")
        before = len(self.problems)
        found = {}
        for name, (hint, needed) in _fields_of(kind).items():
            if name in data:
                found[name] = self.read(hint, data[name], join(place, name))
            elif needed:
                self.problems.append((join(place, name), "missing"))
        if not self._newer:
            unknown = sorted(set(data) - set(_fields_of(kind)))
            self.problems += ((join(place, printable(n, 80)), "unknown key") for n in unknown)
        return kind(**found) if len(self.problems) == before else None


def _finite(number: float) -> bool:
    """Whether it is a number that a float holds: JSON's integers have no end."""
    return -_FLOAT_END < number < _FLOAT_END


_FLOAT_END = 1 << 1023


@cache
def _fields_of(kind: type) -> dict[str, tuple[Any, bool]]:
    """Each field's type, and whether it must be there."""
    hints = get_type_hints(kind)
    return {
        f.name: (hints[f.name], f.default is MISSING and f.default_factory is MISSING)
        for f in fields(kind)
    }


def _words(allowed: tuple[Any, ...]) -> str:
    """`'planned', 'simulated' or 'measured'`."""
    *others, last = map(repr, allowed)
    return f"{', '.join(others)} or {last}" if others else last


def shown(value: object) -> str:
    """A value from outside, cut and safe to show."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of more than 77 digits"
    return printable(f"{value!r:.200}", 80)


def values(data: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Each single value of a dataclass, or of parsed JSON, with its key path."""
    if data is None or isinstance(data, str | int | float):
        yield place, data
    elif isinstance(data, dict):
        for key, part in data.items():
            yield from values(part, join(place, printable(key, 80)))
    elif isinstance(data, list | tuple):
        for index, part in enumerate(data):
            yield from values(part, f"{place}[{index}]")
    else:
        for name in _fields_of(data.__class__):
            yield from values(getattr(data, name), join(place, name))
