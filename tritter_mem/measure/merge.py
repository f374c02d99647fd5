"""What the recorder saw, and what the device's allocator did, as one log of events.

Every request and every free is the allocator's own, in its order, with the bytes that it was asked
for. What a request was for is the recorder's: it saw the tensor. What no tensor holds was allocated
inside an operator, by it or by a library such as cuBLAS: workspace of the module that ran it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from tritter_mem.allocator.trace import ALLOC, FREE_REQUESTED, Trace
from tritter_mem.measure.marks import Mark
from tritter_mem.trace.events import Event, EventLog, Span
from tritter_model.labels import WORKSPACE

_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Merged:
    """A run's events.

    Attributes:
        log: storages are numbered as the allocator's requests are.
        inside: the storages that no tensor holds.
    """

    log: EventLog
    inside: frozenset[int]


class _Request(NamedTuple):
    """One request of the allocator; `freed` is the request count at which its block went."""

    size: int
    freed: int


def merge(log: EventLog, marks: Sequence[Mark], spans: Sequence[Span], trace: Trace) -> Merged:
    """Put the two together.

    Args:
        log: of the recorder.
        marks: which storages and which requests belong to which operator.
        spans: the phases, by the allocator's calls.
        trace: the allocator's history of the same run, from its beginning on.
    """
    requests = _requests(trace)
    seen = [event for event in log if event.kind == "alloc"]
    tensors: dict[int, Event] = {}
    inside: dict[int, Mark] = {}
    for before, mark in pairwise([*marks, _end(marks, requests)]):
        own = range(before.allocations, mark.allocations)
        found = _matched(seen[before.storages : mark.storages], own, requests)
        tensors |= found
        inside |= {number: mark for number in own if number not in found}
    merged = EventLog()
    for number, came in _calls(trace):
        if not came:
            merged.free(number, module="")
        elif number in tensors:
            _append(merged, requests[number].size, tensors[number])
        else:
            _append(merged, requests[number].size, _inside(inside[number]))
    merged.spans += spans
    return Merged(merged, frozenset(inside))


def _end(marks: Sequence[Mark], requests: Sequence[_Request]) -> Mark:
    """What came after the last operator."""
    return marks[-1]._replace(allocations=len(requests), operator="", module="")


def _calls(trace: Trace) -> Iterator[tuple[int, bool]]:
    """Each request with its number and True, each free with the number of its request."""
    at: dict[int, int] = {}
    count = 0
    for action, address in zip(trace.actions, trace.addresses, strict=True):
        if action == ALLOC:
            at[address] = count
            yield count, True
            count += 1
        elif action == FREE_REQUESTED:
            yield at.pop(address), False


def _requests(trace: Trace) -> list[_Request]:
    sizes = [s for a, s in zip(trace.actions, trace.sizes, strict=True) if a == ALLOC]
    freed: dict[int, int] = {}
    count = 0
    for number, came in _calls(trace):
        count += came
        if not came:
            freed[number] = count
    return [_Request(size, freed.get(number, _NEVER)) for number, size in enumerate(sizes)]


def _matched(seen: Sequence[Event], own: range, requests: Sequence[_Request]) -> dict[int, Event]:
    """An operator's tensors by the number of their requests.

    Of several requests of a tensor's size, one that outlived the operator is taken: scratch does
    not.
    """
    left = sorted(own, key=lambda number: (requests[number].freed <= own.stop, number))
    found = {}
    for event in seen:
        number = next((n for n in left if requests[n].size == event.bytes), None)
        if number is not None:  # else the storage is older than the operator
            left.remove(number)
            found[number] = event
    return found


def _inside(mark: Mark) -> Event:
    operator = f"inside {mark.operator}" if mark.operator else ""
    return Event("alloc", 0, 0, operator, mark.module, "", WORKSPACE, mark.place)


def _append(log: EventLog, size: int, event: Event) -> None:
    number = log.alloc(size, operator=event.operator, module=event.module, category=event.category)
    if event.place:
        log.places[number] = event.place
