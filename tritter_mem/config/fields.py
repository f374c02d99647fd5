"""What a field may be, and sections: immutable groups of fields, checked all at once.

The annotations of a section say what its fields may be: `Annotated[int, Whole(1, 8)]`, `Literal`,
`bool`, another section, and `| None` where null is allowed. Type checkers treat a section like a
frozen, keyword-only dataclass. No validation library is used because importing one takes longer
than all the rest of planning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
)

from tritter_mem.errors import ConfigError
from tritter_mem.text import either, printable
from tritter_mem.units import (
    NoUnitError,
    TiB,
    format_bytes,
    format_count,
    parse_count,
    parse_memory,
)


class Kind(Protocol):
    """What one value may be."""

    @property
    def allowed(self) -> str:
        """What is allowed, in words that can follow `expected `."""

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

    parse: Callable[[str | int], int]
    render: Callable[[int], str]
    what: str
    pattern: str

    @property
    def allowed(self) -> str:
        """The range, and how it may be written."""
        return f"{self.what}, from {self.render(self.low)} to {self.render(self.high)}"

    def read(self, value: object) -> int:
        """Read text by its unit, numbers as they are."""
        return super().read(self.parse(value) if isinstance(value, str | int) else value)

    def json_schema(self) -> dict[str, Any]:
        """An integer within the range, or text with a unit."""
        return {"anyOf": [super().json_schema(), {"type": "string", "pattern": self.pattern}]}


def count(low: int, high: int) -> Size:
    """Tokens, channels and the like: 4096, `128k`, `1M`."""
    what = "a whole number such as 4096, 128k or 1M"
    return Size(low, high, parse_count, format_count, what, r"^\s*\d[\d_,]*(\.\d+)?\s*[kKmM]?\s*$")


def memory(low: int, high: int) -> Size:
    """Bytes: `15GiB`, `15GB`, or a number of bytes from 1 MiB on."""
    pattern = r"^\s*\d[\d_,]*(\.\d+)?\s*([kKmMgGtT][iI]?)?[bB]?\s*$"
    what = "a size such as 15GiB or 15GB"
    return Size(low, high, parse_memory, _size_limit, what, pattern)


def _size_limit(count: int) -> str:
    return f"{count // TiB:,} TiB" if count >= TiB else format_bytes(count)


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
        """Accept numbers, and text that is one; whole numbers may be larger than any float."""
        if not isinstance(value, int | float | str) or isinstance(value, bool):
            raise ValueError(self.allowed)
        number = float(value) if isinstance(value, str) else value
        if not self.above < number < self.below:
            raise ValueError(self.allowed)
        return float(number)

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


SHORT_NAMES: Mapping[str, tuple[str, ...]] = {
    "bf16": ("bfloat16",),
    "fp16": ("float16",),
    "half": ("float16",),
    "fp32": ("float32",),
    "train": ("training",),
    "infer": ("inference",),
    "int8": ("bitsandbytes-int8",),
    "8bit": ("int8", "bitsandbytes-int8"),
    "4bit": ("int4", "bitsandbytes-nf4"),
    "nf4": ("bitsandbytes-nf4",),
    "adamw_torch": ("adamw",),
    "adamw_torch_fused": ("adamw",),
    "adamw_8bit": ("adamw-8bit",),
    "adamw_bnb_8bit": ("adamw-8bit",),
}
"""Names that people use, and the first of these that a field takes is meant."""


@dataclass(eq=False, repr=False)
class Choice:
    """One of some names.

    Attributes:
        names: the names.
        why: why there are no others, for messages; empty where nobody would ask.
    """

    names: tuple[str, ...]
    why: str = ""

    @property
    def allowed(self) -> str:
        """The names."""
        named = either(self.names)
        return f"{named}: {self.why}" if self.why else named

    def read(self, value: object) -> str:
        """Accept a name, in any case, and the short names that people use."""
        if isinstance(value, str):
            lower = value.lower()
            for name in (value, lower, *SHORT_NAMES.get(lower, ())):
                if name in self.names:
                    return name
        raise ValueError(self.allowed)

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


OR_NULL = ", or null"


@dataclass(eq=False, repr=False)
class OrNull:
    """Another kind, or null."""

    kind: Kind

    @property
    def allowed(self) -> str:
        """What the other kind allows, or null."""
        return f"{self.kind.allowed}{OR_NULL}"

    def read(self, value: object) -> Any:
        """Let null pass, and read the rest."""
        return None if value is None else self.kind.read(value)

    def json_schema(self) -> dict[str, Any]:
        """The other kind, or null."""
        return {"anyOf": [self.kind.json_schema(), {"type": "null"}]}


KeyPath = tuple[str, ...]
S = TypeVar("S", bound="Section")


class Problem(NamedTuple):
    """One thing that is wrong, and the key path where it is."""

    path: KeyPath
    text: str

    def __str__(self) -> str:
        return f"{printable('.'.join(self.path), 200)}: {self.text}"


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Section:
    """Base of every section, itself without fields.

    Sections are made directly (`Workload(context="128k")`) or from a mapping (`model_validate`);
    either way a ConfigError holds every problem found.
    """

    kinds: ClassVar[dict[str, Kind | type[Section]]]
    """Field name to what the field may be, or to the section that it is; in order."""

    def __init_subclass__(cls) -> None:
        cls.kinds = {name: _kind(annotation) for name, annotation in cls.__annotations__.items()}

    def __init__(self, **values: Any) -> None:
        vars(self).update(vars(self.model_validate(values)))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed; copy the section")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"

    @classmethod
    def derived(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in defaults that follow from other fields. Wrong values are absent here."""
        return values

    @classmethod
    def broken_rules(cls, known: Any) -> list[Problem]:
        """Rules across fields; reading a value that is itself wrong raises UnknownValueError."""
        del known
        return []

    @classmethod
    def model_validate(cls, data: Mapping[str, object]) -> Self:
        """Make a section from a mapping of plain values or sections.

        Raises:
            ConfigError: with one line for each problem: wrong, missing and unknown keys, and
                broken rules.
        """
        values, problems = check(cls, data)
        if problems:
            raise ConfigError(*map(str, problems))
        return build(cls, values)

    def model_dump(self) -> dict[str, Any]:
        """Nested dicts of plain values, ready for JSON or YAML."""
        return {name: value.model_dump() if isinstance(value, Section) else value
                for name, value in vars(self).items()}  # fmt: skip

    def replaced(self, values: Mapping[str, Any]) -> Self:
        """Copy with some values replaced, sections key by key; the rest is not read again.

        Raises:
            ConfigError: a new value is wrong, or a rule is broken.
        """
        copy, problems = self._with(values, ())
        problems = problems or self.broken_rules(Known(copy))
        if problems:
            raise ConfigError(*map(str, problems))
        return build(type(self), copy)

    def _with(
        self, values: Mapping[str, Any], path: KeyPath
    ) -> tuple[dict[str, Any], list[Problem]]:
        copy, problems = {**vars(self)}, []
        for name, value in values.items():
            own, here = copy.get(name), (*path, name)
            if isinstance(own, Section) and isinstance(value, Mapping):
                copy[name], found = own._with(value, here)
            elif name in self.kinds:
                copy[name], found = _read(self.kinds[name], value, here)
            else:
                found = [Problem(here, unknown_key(name, type(self)))]
            problems += found
        return (copy if problems else self.derived(copy)), problems

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """Copy with fields replaced by values that the caller knows to be right: unchecked."""
        return build(type(self), {**vars(self), **update})


class UnknownValueError(LookupError):
    """A rule asked for a value that is itself wrong, so the rule cannot be judged."""


class Known:
    """The right values of a section that may have wrong ones, as attributes."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            raise UnknownValueError(name)
        value = self._values[name]
        return Known(value) if isinstance(value, dict) else value


def set_value(values: dict[str, Any], path: KeyPath, value: Any) -> list[Problem]:
    """Set one value of nested mappings in place, unless what is there leaves no room for it."""
    *sections, last = path
    for depth, name in enumerate(sections, 1):
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            return [Problem(path, f"unknown key; {'.'.join(path[:depth])} holds no keys")]
    values[last] = value
    return []


def _kind(annotation: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return arguments[1]
    if origin in (Union, UnionType):
        return OrNull(_kind(arguments[0]))
    if origin is Literal:
        return Choice(arguments)
    return Flag() if annotation is bool else annotation


def check(
    section: type[Section], data: Mapping[str, object], path: KeyPath = ()
) -> tuple[dict[str, Any], list[Problem]]:
    """Read a mapping as a section.

    Returns:
        The values that are right, with defaults, as nested dicts; and every problem.
    """
    values: dict[str, Any] = {}
    problems = []
    for name, kind in section.kinds.items():
        # The default of a field is the attribute of the class.
        value = data.get(name, getattr(section, name, MISSING))
        values[name], found = _read(kind, value, (*path, name))
        problems += found
    values = section.derived({name: v for name, v in values.items() if v is not MISSING})
    problems += [Problem((*path, str(key)), unknown_key(str(key), section))
                 for key in data if key not in section.kinds]  # fmt: skip
    broken = section.broken_rules(Known(values))
    return values, problems + [Problem(path + rule.path, rule.text) for rule in broken]


def _read(kind: Kind | type[Section], value: Any, path: KeyPath) -> tuple[Any, list[Problem]]:
    if isinstance(kind, type):
        return _read_section(kind, value, path)
    try:
        return (MISSING if value is MISSING else kind.read(value)), _absent(value, kind, path)
    except NoUnitError as error:
        return MISSING, [Problem(path, str(error))]
    except ValueError:
        return MISSING, [Problem(path, f"got {shown(value)}, expected {kind.allowed}")]


def _absent(value: Any, kind: Kind, path: KeyPath) -> list[Problem]:
    return [Problem(path, f"missing; expected {kind.allowed}")] if value is MISSING else []


def _read_section(kind: type[Section], value: Any, path: KeyPath) -> tuple[Any, list[Problem]]:
    if isinstance(value, kind):
        return vars(value), []
    if isinstance(value, Mapping):
        return check(kind, value, path)
    found = "missing;" if value is MISSING else f"got {shown(value)},"
    allowed = f"a mapping with the keys {', '.join(kind.kinds)}"
    return MISSING, [Problem(path, f"{found} expected {allowed}")]


def build(section: type[S], values: Mapping[str, Any]) -> S:
    """Make a section, and the sections within it, from values that `check` found right."""
    built = object.__new__(section)
    for name, value in values.items():
        kind = section.kinds[name]
        nested = isinstance(kind, type) and isinstance(value, dict)
        vars(built)[name] = build(kind, value) if nested else value  # type: ignore[arg-type]
    return built


def unknown_key(key: str, section: type[Section]) -> str:
    """Say what was probably meant: a near miss, or the same key one section deeper."""
    known = {name: name for name in section.kinds}
    for name, kind in section.kinds.items():
        deeper = kind.kinds if isinstance(kind, type) else {}
        known.update((key, f"{name}.{key}") for key in deeper if key not in known)
    from difflib import get_close_matches  # only what is wrong needs it

    near = get_close_matches(key, known, n=1)
    if near:
        return f"unknown key; did you mean {known[near[0]]}?"
    return f"unknown key; the keys are {', '.join(section.kinds)}"


def shown(value: object) -> str:
    """Render what was found, short, in YAML's words."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, Mapping | list | tuple):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
