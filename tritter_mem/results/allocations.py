"""Who allocated the memory that was in use at the peak: by call stack, or by module."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One step of a path: a function, or a module.

    Attributes:
        name: the function's or the module's.
        file: where the function is; empty for a module.
        line: what it was doing, from 1; 0 where it is not known.
    """

    name: str
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What was allocated along one path and was in use at the peak.

    Attributes:
        path: outermost first; empty where nobody recorded it.
        allocated_bytes: of the allocator's blocks.
        count: how many blocks (by module: how many modules).
        component: one of `COMPONENTS`, where it is known.
    """

    path: tuple[Frame, ...]
    allocated_bytes: int
    count: int = 1
    component: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocations:
    """All that was in use at the allocated peak.

    Attributes:
        by: what the paths are made of.
        allocations: no two with the same path and component, most bytes first. Their sum is the
            allocated peak.
    """

    by: Literal["stack", "module"]
    allocations: tuple[Allocation, ...]

    @property
    def total_bytes(self) -> int:
        """The allocated peak."""
        return sum(one.allocated_bytes for one in self.allocations)


def joined(found: Iterable[Allocation]) -> tuple[Allocation, ...]:
    """Allocations of one path and component as one, most bytes first."""
    same: defaultdict[tuple[tuple[Frame, ...], str], list[int]] = defaultdict(lambda: [0, 0])
    for one in found:
        sums = same[one.path, one.component]
        sums[0] += one.allocated_bytes
        sums[1] += one.count
    made = [
        Allocation(path=path, component=component, allocated_bytes=size, count=count)
        for (path, component), (size, count) in same.items()
    ]
    return tuple(sorted(made, key=_most_first))


def _most_first(one: Allocation) -> tuple[int, list[tuple[str, str, int]], str]:
    path = [(frame.name, frame.file, frame.line) for frame in one.path]
    return -one.allocated_bytes, path, one.component


def shortened(found: Allocations, most: int) -> Allocations:
    """At most `most` allocations, where outermost frames suffice; the bytes stay whole.

    The half with most bytes stays as it is. The others lose their innermost frames, down to the
    outermost one, until enough of them have the same path.
    """
    if len(found.allocations) <= most:
        return found
    head, rest = found.allocations[: most // 2], found.allocations[most // 2 :]
    deepest = max(len(one.path) for one in rest)
    depths = range(deepest, 0, -1)
    room = most - len(head)
    at = bisect_left(depths, 1, key=lambda depth: _distinct(rest, depth) <= room)
    depth = depths[min(at, len(depths) - 1)] if depths else 0
    cut = (replace(one, path=one.path[:depth]) for one in rest)
    return replace(found, allocations=joined((*head, *cut)))


def _distinct(found: Sequence[Allocation], depth: int) -> int:
    return len({(one.path[:depth], one.component) for one in found})
