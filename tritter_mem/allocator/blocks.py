"""Blocks, and the pools of free ones: the best fit, kept sorted."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from tritter_mem.allocator.rules import smallest_remainder
from tritter_mem.allocator.statistics import Tally

# A free block sorts by size and then address: the best fit is the smallest that suffices, and of
# equal ones the lowest. Both in one integer compare faster than a pair. Addresses have 63 bits.
ADDRESS_BITS = 64


class State(Enum):
    """What a block is."""

    FREE = 0
    ALLOCATED = 1
    WAITING = 2  # freed, while another stream may still use it
    UNMAPPED = 3  # address space of an expandable segment without memory behind it
    MERGED = 4  # part of a neighbour now; the object is no longer used


FREE, ALLOCATED, WAITING, UNMAPPED, MERGED = State  # enum attributes are slow to look up


class PrivateStream(NamedTuple):
    """A stream within a private pool, such as a CUDA graph's; used in place of a stream."""

    stream: int
    pool_id: tuple[int, int]


Stream = int | PrivateStream


class ExpandableSegment(NamedTuple):
    """A reservation of addresses that memory is mapped into, page by page."""

    address: int
    size: int
    page_bytes: int


class Block:
    """A piece of a segment; its neighbours by address are `previous` and `next`."""

    __slots__ = (
        "address", "age", "expandable", "next", "pool", "previous", "requested", "size", "state",
    )  # fmt: skip

    def __init__(self, address: int, size: int, pool: BlockPool,
                 expandable: ExpandableSegment | None = None) -> None:  # fmt: skip
        self.address = address
        self.size = size
        self.pool = pool
        self.expandable = expandable
        self.requested = 0
        self.state = FREE
        self.previous: Block | None = None
        self.next: Block | None = None
        self.age = 0  # the number of lookups in its size class when the block became free

    def is_split(self) -> bool:
        """Whether the block is only a part of its segment."""
        return self.previous is not None or self.next is not None

    def split(self, size: int) -> Block:
        """Keep the first `size` bytes; returns a new block with the rest."""
        rest = Block(self.address + size, self.size - size, self.pool, self.expandable)
        self.size = size
        rest.previous = self
        rest.next = after = self.next
        if after is not None:
            after.previous = rest
        self.next = rest
        return rest

    def absorb_next(self) -> None:
        """Become one with the block behind this one."""
        gone = self.next
        if gone is None:
            return
        self.size += gone.size
        self.next = after = gone.next
        if after is not None:
            after.previous = self
        gone.state = MERGED


class BlockPool:
    """The free blocks of one stream and size class.

    A sorted list is the fastest structure up to about ten thousand free blocks, and a process
    rarely holds more than two thousand.
    """

    __slots__ = (
        "blocks", "keys", "other", "remainder", "small", "stream", "tally", "unmapped",
    )  # fmt: skip

    def __init__(self, stream: Stream, tally: Tally, other: Tally, *, small: bool,
                 expandable: bool) -> None:  # fmt: skip
        self.stream = stream
        self.small = small
        self.tally = tally
        self.other = other  # of the other size class
        self.keys: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.unmapped: list[Block] = []  # by address
        self.remainder = smallest_remainder(small=small, expandable=expandable)

    @property
    def private(self) -> bool:
        """Whether the blocks belong to a private pool, whose segments no cache release touches."""
        return isinstance(self.stream, PrivateStream)

    def add(self, block: Block) -> None:
        """Put a free block in."""
        key = block.size << ADDRESS_BITS | block.address
        insort(self.keys, key)
        self.blocks[key] = block
        block.state = FREE
        block.age = self.tally.lookups

    def remove(self, block: Block) -> None:
        """Take a certain free block out."""
        key = block.size << ADDRESS_BITS | block.address
        keys = self.keys
        del keys[bisect_left(keys, key)]
        del self.blocks[key]

    def position(self, size: int) -> int:
        """Where the smallest free block of at least `size` bytes stands in the order."""
        return bisect_left(self.keys, size << ADDRESS_BITS)

    def at(self, position: int) -> Block:
        """The free block at a place in the order of size and address."""
        return self.blocks[self.keys[position]]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Block]:
        """Free blocks by size and address, as they are now: the pool may change meanwhile."""
        blocks = self.blocks
        return iter([blocks[key] for key in self.keys])
