"""A run's memory events in compact columns: which storage came or went, where, and what for.

A log holds one row an event and one row a storage. A storage's bytes never change in it: storage
that is resized counts as a new one. Whose it is and what it is for may become known later, and then
holds from its allocation on. Events know their phase by position: a phase is a range of events.
Nothing here needs PyTorch.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from tritter_mem.results.run import COMPONENTS


class Event(NamedTuple):
    """One storage that came (`alloc`) or went (`free`).

    Attributes:
        kind: `alloc` or `free`.
        storage: number of the storage, counted from 0 in the order of allocation.
        bytes: size of the storage.
        operator: the operator that allocated; empty for a free, which no operator makes.
        module: qualified name of a module, or empty: of an allocation the one that the storage
            belongs to, of a free the one that ran.
        phase: the phase of the run; empty outside of any.
        category: what the storage is for, one of `results.COMPONENTS`.
        place: where the storage comes from, as in `EventLog.places`.
    """

    kind: Literal["alloc", "free"]
    storage: int
    bytes: int
    operator: str
    module: str
    phase: str
    category: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of the run: the events from number `start` up to, not including, number `end`."""

    name: str
    start: int
    end: int


class EventLog:
    """Memory events in the order in which they happened.

    Attributes:
        spans: the phases, in order; they do not overlap.
        emptied: how many events there were where the allocator's cache is given back to the driver.
        notes: what was seen and not counted, with how often.
        places: where storages come from that are not of the device's own stream, by number:
            `SIDE_STREAM` or `GRAPH_POOL` of `tritter_model.labels`.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.emptied: list[int] = []
        self.notes: dict[str, int] = {}
        self.places: dict[int, str] = {}
        self._is_alloc = array("b")
        self._storage = array("q")
        self._operator = array("i")
        self._module = array("i")
        self._storage_bytes = array("q")
        self._storage_category = array("b")
        self._storage_module = array("i")
        self._operators = _Names()
        self._modules = _Names()

    def __len__(self) -> int:
        return len(self._storage)

    @property
    def storages(self) -> int:
        """How many storages were ever allocated."""
        return len(self._storage_bytes)

    def alloc(self, nbytes: int, *, operator: str, module: str, category: str) -> int:
        """Append an allocation; returns the storage's number."""
        storage = len(self._storage_bytes)
        self._storage_bytes.append(nbytes)
        self._storage_category.append(_category_number(category))
        self._storage_module.append(self._modules[module])
        self._append(True, storage, operator, module)
        return storage

    def free(self, storage: int, *, module: str) -> None:
        """Append the free of a storage."""
        self._append(False, storage, "", module)

    def empty_cache(self) -> None:
        """The allocator's cache is given back to the driver now."""
        self.emptied.append(len(self))

    def recategorise(self, storage: int, category: str) -> None:
        """Account a storage, from its allocation on, to another category."""
        self._storage_category[storage] = _category_number(category)

    def rename(self, storage: int, module: str) -> None:
        """Say that a storage belongs, from its allocation on, to another module."""
        self._storage_module[storage] = self._modules[module]

    def module(self, storage: int) -> str:
        """The module that a storage belongs to."""
        return self._modules.text[self._storage_module[storage]]

    def category(self, storage: int) -> str:
        """What a storage is for."""
        return COMPONENTS[self._storage_category[storage]]

    def note(self, text: str) -> None:
        """Count something that was seen and is not in the events."""
        self.notes[text] = self.notes.get(text, 0) + 1

    def changes(self) -> Iterator[tuple[int, int]]:
        """For each event the category's number in `results.COMPONENTS`, and the signed bytes."""
        sizes, categories = self._storage_bytes, self._storage_category
        for is_alloc, storage in zip(self._is_alloc, self._storage, strict=True):
            size = sizes[storage]
            yield categories[storage], size if is_alloc else -size

    def requests(self, start: int, end: int) -> Iterator[tuple[int, bool, int]]:
        """Storage, whether it came or went, and its bytes, of the events in a range."""
        sizes = self._storage_bytes
        for position in range(start, end):
            storage = self._storage[position]
            yield storage, bool(self._is_alloc[position]), sizes[storage]

    def live_bytes(self, level: int, counts: Callable[[str], bool]) -> int:
        """Bytes that are live after so many events, of what came by operators that count."""
        operators = {number for text, number in self._operators.items() if counts(text)}
        live: dict[int, int] = {}
        for position, (storage, came, nbytes) in enumerate(self.requests(0, level)):
            if came and self._operator[position] in operators:
                live[storage] = nbytes
            elif not came:
                live.pop(storage, None)
        return sum(live.values())

    def with_storage_bytes(self, sizes: array[int]) -> EventLog:
        """The same events with other sizes, one for each storage; all else is shared."""
        other = copy(self)
        other._storage_bytes = sizes
        return other

    def event(self, number: int) -> Event:
        """One event."""
        return next(islice(self, number, None))

    def __iter__(self) -> Iterator[Event]:
        phases = self._phase_names()
        columns = zip(self._is_alloc, self._storage, self._operator, self._module, strict=True)
        for is_alloc, storage, operator, module in columns:
            yield Event(
                kind="alloc" if is_alloc else "free",
                storage=storage,
                bytes=self._storage_bytes[storage],
                operator=self._operators.text[operator],
                module=self.module(storage) if is_alloc else self._modules.text[module],
                phase=next(phases),
                category=self.category(storage),
                place=self.places.get(storage, ""),
            )

    def _append(self, is_alloc: bool, storage: int, operator: str, module: str) -> None:
        self._is_alloc.append(is_alloc)
        self._storage.append(storage)
        self._operator.append(self._operators[operator])
        self._module.append(self._modules[module])

    def _phase_names(self) -> Iterator[str]:
        """The phase of each event in turn."""
        position = 0
        for span in self.spans:
            yield from [""] * (span.start - position)
            yield from [span.name] * (span.end - span.start)
            position = span.end
        yield from [""] * (len(self) - position)


class _Names(dict[str, int]):
    """Numbers for names, given at first use; `text` turns a number back."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self.text)
        self.text.append(name)
        return number


_CATEGORY_NUMBERS = {name: number for number, name in enumerate(COMPONENTS)}


def _category_number(category: str) -> int:
    try:
        return _CATEGORY_NUMBERS[category]
    except KeyError:
        raise ValueError(
            f"unknown memory category {category!r}, expected {', '.join(COMPONENTS)}"
        ) from None
