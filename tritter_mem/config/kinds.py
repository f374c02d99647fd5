"""What one value of a profile may be: how it is read, what is allowed in words, its JSON Schema."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tritter_mem.units import parse_bytes, parse_count


class Kind(Protocol):
    """What one value may be."""

    @property
    def allowed(self) -> str:
        """What is allowed, in words that can follow `allowed: `."""

    def read(self, value: object) -> Any:
        """Turn a value from YAML or Python into the field's; ValueError where it is not allowed."""

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema of what a file may hold."""


@dataclass(eq=False, repr=False)
class Whole:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    @property
    def allowed(self) -> str:
        """The range."""
        return f"a whole number from {self.low:,} to {self.high:,}"

    def read(self, value: object) -> int:
        """Accept integers alone: `true` and 4096.0 are mistakes."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(self.allowed)
        if not self.low <= value <= self.high:
            raise ValueError(self.allowed)
        return value

    def json_schema(self) -> dict[str, Any]:
        """An integer within the range."""
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(eq=False, repr=False)
class Size(Whole):
    """A whole number that may also be written as text with a unit."""

    parse: Callable[[str], int]
    examples: str
    pattern: str

    @property
    def allowed(self) -> str:
        """The range, and how it may be written."""
        return f"{super().allowed}, or text such as {self.examples}"

    def read(self, value: object) -> int:
        """Read text by its unit, numbers as they are."""
        return super().read(self.parse(value) if isinstance(value, str) else value)

    def json_schema(self) -> dict[str, Any]:
        """An integer within the range, or text with a unit."""
        return {"anyOf": [super().json_schema(), {"type": "string", "pattern": self.pattern}]}


def count(low: int, high: int) -> Size:
    """Tokens, channels and the like: 4096, `128k`, `1M`."""
    return Size(low, high, parse_count, "128k or 1M", r"^\s*\d[\d_,]*(\.\d+)?\s*[kKmM]?\s*$")


def memory(low: int, high: int) -> Size:
    """Bytes: 1024, `15 GiB`, `15 GB`."""
    pattern = r"^\s*\d[\d_,]*(\.\d+)?\s*([kKmMgGtT][iI]?)?[bB]?\s*$"
    return Size(low, high, parse_bytes, "15 GiB or 15 GB", pattern)


@dataclass(eq=False, repr=False)
class Real:
    """A number above `above` and below `below`."""

    above: float
    below: float

    @property
    def allowed(self) -> str:
        """The open range."""
        return f"a number above {self.above:g} and below {self.below:g}"

    def read(self, value: object) -> float:
        """Accept numbers, and text because YAML 1.1 takes `1e-5` for text."""
        if not isinstance(value, int | float | str) or isinstance(value, bool):
            raise ValueError(self.allowed)
        number = float(value)
        if not self.above < number < self.below:
            raise ValueError(self.allowed)
        return number

    def json_schema(self) -> dict[str, Any]:
        """A number within the range."""
        return {"type": "number", "exclusiveMinimum": self.above, "exclusiveMaximum": self.below}


@dataclass(eq=False, repr=False)
class Text:
    """One line of `shortest` to `longest` characters that can be shown."""

    shortest: int
    longest: int

    @property
    def allowed(self) -> str:
        """The lengths."""
        return f"one line of {self.shortest} to {self.longest} printable characters"

    def read(self, value: object) -> str:
        """Accept text alone, and nothing that could steer a terminal."""
        if not isinstance(value, str) or not self.shortest <= len(value) <= self.longest:
            raise ValueError(self.allowed)
        if not value.isprintable():
            raise ValueError(self.allowed)
        return value

    def json_schema(self) -> dict[str, Any]:
        """A string within the lengths."""
        return {"type": "string", "minLength": self.shortest, "maxLength": self.longest}


@dataclass(eq=False, repr=False)
class Flag:
    """True or false."""

    allowed: str = "true or false"

    def read(self, value: object) -> bool:
        """Accept booleans alone."""
        if not isinstance(value, bool):
            raise ValueError(self.allowed)
        return value

    def json_schema(self) -> dict[str, Any]:
        """A boolean."""
        return {"type": "boolean"}


@dataclass(eq=False, repr=False)
class Choice:
    """One of some names."""

    names: tuple[str, ...]

    @property
    def allowed(self) -> str:
        """The names."""
        return ", ".join(self.names)

    def read(self, value: object) -> str:
        """Accept a name as it is written."""
        if not isinstance(value, str) or value not in self.names:
            raise ValueError(self.allowed)
        return value

    def json_schema(self) -> dict[str, Any]:
        """An enumeration."""
        return {"enum": list(self.names)}


@dataclass(eq=False, repr=False)
class Many:
    """A list, every item of one kind; it is kept as a tuple."""

    item: Kind

    @property
    def allowed(self) -> str:
        """What the items may be."""
        return f"a list, each item {self.item.allowed}"

    def read(self, value: object) -> tuple[Any, ...]:
        """Read every item."""
        if not isinstance(value, list | tuple):
            raise ValueError(self.allowed)
        return tuple(self.item.read(item) for item in value)

    def json_schema(self) -> dict[str, Any]:
        """An array."""
        return {"type": "array", "items": self.item.json_schema()}


@dataclass(eq=False, repr=False)
class OrNull:
    """Another kind, or null."""

    kind: Kind

    @property
    def allowed(self) -> str:
        """What the other kind allows, or null."""
        return f"{self.kind.allowed}, or null"

    def read(self, value: object) -> Any:
        """Let null pass, and read the rest."""
        return None if value is None else self.kind.read(value)

    def json_schema(self) -> dict[str, Any]:
        """The other kind, or null."""
        return {"anyOf": [self.kind.json_schema(), {"type": "null"}]}
