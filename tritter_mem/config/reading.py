"""YAML from people: read safely and within limits, every value's line kept, all problems found.

The file is read event by event, so that nothing nested, aliased or tagged is ever expanded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from tritter_mem.config.fields import KeyPath, shown
from tritter_mem.errors import ConfigError
from tritter_mem.input_files import open_input

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_VALUES = 1000
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool")}
# Numbers as YAML 1.2's core schema has them. PyYAML reads those of 1.1, where 010 is 8, 1:30 is 90
# and 1e5 is text.
NUMBER = re.compile(
    r"(?P<whole>[-+]?[0-9]+)|0o(?P<octal>[0-7]+)|0x(?P<hex>[0-9a-fA-F]+)"
    r"|(?P<real>[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?)"
    r"|(?P<infinite>[-+]?\.(inf|Inf|INF))|(?P<nan>\.(nan|NaN|NAN))"
)
_READ: dict[str, Callable[[str], int | float]] = {
    "whole": int,
    "octal": lambda digits: int(digits, 8),
    "hex": lambda digits: int(digits, 16),
    "real": float,
    "infinite": lambda text: float(text.replace(".", "")),
    "nan": lambda text: math.nan,
}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Document:
    """A YAML mapping that was read.

    Attributes:
        values: nested dicts, lists, text, numbers, booleans and None.
        places: where each key path is, as `file.yaml:12`; the empty path is the file.
        problems: what is wrong with the YAML itself, one line each.
    """

    values: dict[str, Any]
    places: dict[KeyPath, str]
    problems: list[str] = field(default_factory=list)


def read_document(path: Path, label: str) -> Document:
    """Read a file that has to hold one mapping.

    Args:
        path: the file.
        label: what messages call it.

    Raises:
        ConfigError: there is no such file, or it cannot be read, is too large, is no UTF-8 text, no
            YAML, or no mapping.
    """
    return _Reader(read_text(path, label), label).document()


def read_value(text: str, label: str) -> Any:
    """Read one value as YAML would: numbers, `true`, `null`, text, or something in brackets.

    Raises:
        ConfigError: the text is no such value.
    """
    reader = _Reader(text, label)
    with suppress(ConfigError):
        value = reader.root()
        if not reader.problems:
            return value
    advice = "quote text that holds brackets, braces, colons or other YAML syntax"
    raise ConfigError(f"{label}: got {shown(text)}, expected one YAML value; {advice}")


def read_number(text: str) -> int | float | None:
    """The number that an unquoted text is; None where it is none, or one of thousands of digits."""
    match = NUMBER.fullmatch(text)
    if match is None:
        return None
    kind = next(name for name in _READ if match[name] is not None)
    try:
        return _READ[kind](match[kind])
    except ValueError:
        return None


def read_stream(stream: BinaryIO, label: str) -> Document:
    """Read a stream, such as standard input, that has to hold one mapping.

    Raises:
        ConfigError: as `read_document` does.
    """
    return _Reader(_text(stream.read(MAX_BYTES + 1), label), label).document()


def read_text(path: Path, label: str) -> str:
    """Read a whole text file of at most `MAX_BYTES`; ConfigError says why it cannot be read."""
    try:
        with open_input(path) as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{label}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{label}: got a directory, expected a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{label}: cannot be read: {error.strerror}") from None
    return _text(content, label)


def _text(content: bytes, label: str) -> str:
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{label}: got more than {MAX_BYTES:,} bytes, expected a YAML profile")
    if b"\0" in content:
        raise ConfigError(f"{label}: got a binary file, expected YAML, as UTF-8 text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"got the byte 0x{content[error.start]:02x}"
        raise ConfigError(f"{label}:{line}: {found}, expected UTF-8 text") from None


class _Reader:
    """Turns the events of one YAML stream into values."""

    def __init__(self, text: str, label: str) -> None:
        self.label = label
        self.places: dict[KeyPath, str] = {(): label}
        self.problems: list[str] = []
        self._count = 0
        self._loader = _Loader(text)

    def document(self) -> Document:
        """Read one mapping."""
        values = self.root()
        if values is None:
            raise ConfigError(f"{self.label}: got nothing, expected a mapping of keys to values")
        if not isinstance(values, dict):
            found = "a list" if isinstance(values, list) else "a single value"
            raise ConfigError(f"{self.label}: got {found}, expected a mapping of keys to values")
        return Document(values, self.places, self.problems)

    def root(self) -> Any:
        """Read the whole stream: one value, None where it is empty."""
        try:
            return self._root()
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise ConfigError(f"{self.label}{line}: not YAML: {error.problem}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.label}: not YAML: {' '.join(str(error).split())}") from None
        finally:
            self._loader.dispose()

    def _root(self) -> Any:
        self._next()  # the start of the stream
        if isinstance(self._next(), yaml.StreamEndEvent):
            return None
        value = self._value((), self._next())
        self._next()  # the end of the document
        second = self._next()
        if not isinstance(second, yaml.StreamEndEvent):
            self._wrong(second, "got a second document, expected only one")
        return value

    def _next(self) -> Any:
        return self._loader.get_event()

    def _value(self, path: KeyPath, event: Any) -> Any:
        self._refuse_tricks(path, event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._scalar(event)

    def _refuse_tricks(self, path: KeyPath, event: Any) -> None:
        """Stop at what a profile never needs, and what blows a small file up."""
        self._count += 1
        found = None
        if isinstance(event, yaml.AliasEvent):
            found = f"aliases are not allowed, got *{event.anchor}; write the value out"
        elif event.tag is not None:
            found = f"tags are not allowed, got {event.tag!r}; write the value alone"
        elif len(path) > MAX_DEPTH:
            found = f"more than {MAX_DEPTH} levels of nesting"
        elif self._count > MAX_VALUES:
            found = f"more than {MAX_VALUES:,} values"
        if found:
            raise ConfigError(f"{self._place(event)}: {found}")

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or not event.value.isprintable():
                # What follows belongs to the key that cannot be read: there is no going on.
                raise ConfigError(f"{self._place(event)}: a key is not plain text")
            key = (*path, event.value)
            if event.value in values:
                self._wrong(event, f"{'.'.join(key)}: duplicate key, first at {self.places[key]}")
            else:
                self.places[key] = self._place(event)
            values[event.value] = self._value(key, self._next())
        return values

    def _sequence(self, path: KeyPath) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            values.append(self._value((*path, str(len(values))), event))
        return values

    def _scalar(self, event: Any) -> Any:
        if event.implicit[0]:  # not quoted
            number = read_number(event.value)
            if number is not None:
                return number
        tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        if tag not in _PLAIN:
            return event.value  # dates too: no field is a date
        return self._loader.construct_object(yaml.ScalarNode(tag, event.value))

    def _place(self, event: Any) -> str:
        return f"{self.label}:{event.start_mark.line + 1}"

    def _wrong(self, event: Any, text: str) -> None:
        self.problems.append(f"{self._place(event)}: {text}")
