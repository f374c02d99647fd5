"""Random operations on an allocator, as plain data: both sides play the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tritter_mem.units import GiB, KiB, MiB

STREAMS = 3  # that requests are made on
SIDE_STREAMS = 2  # that only use memory of others
TOTAL_BYTES = 4 * GiB
CONTEXT_BYTES = 512 * MiB
THRESHOLDS = [512, KiB * 4, MiB, 2 * MiB, 10 * MiB, 20 * MiB, 32 * MiB, 40 * MiB, 64 * MiB]


class Operation(NamedTuple):
    """One operation; what it does not need is 0.

    `what` is one of: `alloc` (`size` bytes on `stream`, kept in `slot`), `free` (`slot`), `record`
    (the tensor in `slot` is used on `stream`), `finish` (the work on `stream` ends), `empty` (the
    cache), `enter` (the private pool `slot`), `leave` (it), `drop` (it).
    """

    what: str
    slot: int = 0
    size: int = 0
    stream: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """Operations, and the memory that there is for them.

    Attributes:
        held_bytes: what others hold of the device, besides the context.
        fraction: what `set_per_process_memory_fraction` is given; 1: no limit.
    """

    operations: tuple[Operation, ...]
    held_bytes: int = 0
    fraction: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "held_bytes": self.held_bytes,
            "fraction": self.fraction,
            "operations": [list(operation) for operation in self.operations],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Sequence:
        """From plain data."""
        return cls(
            operations=tuple(Operation(*operation) for operation in found["operations"]),
            held_bytes=found["held_bytes"],
            fraction=found["fraction"],
        )


def random_sequence(generator: random.Random, length: int, *, fraction: bool) -> Sequence:
    """Operations for one of several kinds of load.

    Args:
        generator: the source of chance.
        length: how many operations.
        fraction: whether the process always has a memory limit.
    """
    held = generator.choice([0, 0, generator.randrange(2600, 3500) * MiB])
    limited = fraction or generator.random() < 0.3
    share = generator.uniform(0.03, 0.4) if limited else 1.0
    load = _Load(generator)
    return Sequence(
        operations=tuple(load.operation() for _ in range(length)),
        held_bytes=held,
        fraction=round(share, 4),
    )


class _Load:
    """Makes operations one after the other; what is live decides what can come next."""

    def __init__(self, generator: random.Random) -> None:
        self._random = generator
        self._live: list[int] = []
        self._slots = 0
        self._pools: list[int] = []
        self._inside = self._deferred = False  # in a private pool; a free there waits for its end
        self._used: set[int] = set()
        self._streams = generator.choice([1, 1, 2, STREAMS])
        self._crowd = generator.choice([4, 20, 60])
        self._classes = generator.sample(SIZES, generator.randrange(1, len(SIZES) + 1))
        self._sizes: list[int] = [512]
        self._rare = generator.choice([0.0, 0.05, 0.2])
        self._with_pools = generator.random() < 0.3
        # PyTorch asks the streams' events in the order of a hash table, which is not simulated: one
        # stream at a time uses the memory of others.
        self._user = generator.randrange(STREAMS + SIDE_STREAMS)

    def operation(self) -> Operation:
        """The next one."""
        chance = self._random.random()
        if chance < self._rare and (found := self._random.choice(RARE)(self)):
            return found
        growing = self._random.random() * 2 * self._crowd > len(self._live)
        return (not growing and self._live and self._free()) or self._alloc()

    def _alloc(self) -> Operation:
        self._slots += 1
        self._deferred = self._deferred and self._inside
        self._live.append(self._slots)
        stream = self._random.randrange(self._streams)
        return Operation("alloc", self._slots, self._size(), stream)

    def _size(self) -> int:
        if self._random.random() < 0.3:
            return self._random.choice(self._sizes)
        size = max(self._random.choice(self._classes)(self._random), 1)
        self._sizes.append(size)
        return size

    def _free(self) -> Operation | None:
        position = self._random.randrange(len(self._live))
        if self._inside and self._live[position] in self._used:
            # Frees that wait for a capture's end are done in the order of a hash table, too.
            if self._deferred:
                return None
            self._deferred = True
        return Operation("free", self._live.pop(position))

    # The seldom ones; None where there is nothing to do it with.

    def _record(self) -> Operation | None:
        # Within a capture PyTorch notes the use under the address of its block object, and may not
        # strike it out when the block goes: the next object there would inherit it.
        if not self._live or self._inside:
            return None
        slot = self._random.choice(self._live)
        self._used.add(slot)
        return Operation("record", slot, 0, self._user)

    def _finish(self) -> Operation:
        return Operation("finish", 0, 0, self._user)

    def _empty(self) -> Operation:
        return Operation("empty")

    def _pool(self) -> Operation | None:
        if not self._with_pools:
            return None
        if self._inside:
            self._inside = False
            return Operation("leave", self._pools[-1])
        self._inside = True
        if not self._pools or self._random.random() < 0.5:
            self._pools.append(len(self._pools) + 1)
        return Operation("enter", self._pools[-1])


def _near_threshold(generator: random.Random) -> int:
    beside = [-513, -512, -511, -1, 0, 1, 511, 512, 513]
    return generator.choice(THRESHOLDS) + generator.choice(beside)


SIZES: list[Callable[[random.Random], int]] = [
    lambda generator: generator.randrange(1, 4 * KiB),
    lambda generator: generator.randrange(1, MiB),
    lambda generator: generator.randrange(MiB, 10 * MiB),
    lambda generator: generator.randrange(10 * MiB, 24 * MiB),
    lambda generator: generator.randrange(20 * MiB, 150 * MiB),
    lambda generator: 1 << generator.randrange(0, 28),
    lambda generator: generator.randrange(1, 60) * 2 * MiB,
    _near_threshold,
]
RARE: list[Callable[[_Load], Operation | None]] = [
    _Load._record, _Load._record, _Load._record, _Load._finish, _Load._empty, _Load._pool,
]  # fmt: skip


def shrink(sequence: Sequence, fails: Callable[[Sequence], bool]) -> Sequence:
    """The shortest sequence that still fails, found by leaving out ever shorter runs."""
    length = max(len(sequence.operations) // 2, 1)
    while length:
        for shorter in _without_a_run(sequence, length):
            if fails(shorter):
                sequence = shorter
                break
        else:
            length //= 2
    return sequence


def _without_a_run(sequence: Sequence, length: int) -> Iterator[Sequence]:
    operations = sequence.operations
    for first in reversed(range(0, len(operations), length)):
        yield Sequence(
            operations=operations[:first] + operations[first + length :],
            held_bytes=sequence.held_bytes,
            fraction=sequence.fraction,
        )
