"""Dataclasses from the plain data that travels between processes as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

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
