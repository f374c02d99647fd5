"""Blocks, and the pools of those that are free or wait for memory behind their addresses."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from enum import Enum
from itertools import count
from typing import NamedTuple

from tritter_mem.allocator.rules import round_up, smallest_remainder
from tritter_mem.allocator.statistics import Tally
from tritter_mem.results.segments import FREE, MERGED, UNMAPPED, PrivateStream, State, Stream
from tritter_mem.torch_release import Release

# A free block sorts by its size, then by its order among equal ones. Both in one integer compare
# faster than a pair.
ORDER_BITS = 96
_ADDRESS_BITS = 64


class Ties(Enum):
    """Which of several free blocks of equal size is taken.

    Sources: the comparators of blocks in `c10/cuda/CUDACachingAllocator.cpp`, which PyTorch's pull
    requests 178362 (for 2.12) and 183591 (for 2.13) changed.
    """

    LOWEST = "the one with the lowest address"
    FIRST_MADE = "the one that was made first"  # a request that splits a block makes its own
    OLDEST_SEGMENT = "the one in the oldest segment"  # of two in one segment the lower


def ties_of(release: Release) -> Ties:
    """What a release of PyTorch does."""
    if release < (2, 12):
        return Ties.LOWEST
    return Ties.FIRST_MADE if release < (2, 13) else Ties.OLDEST_SEGMENT


class Orders:
    """Gives blocks their places among those of equal size.

    Attributes:
        by_block: whether each block is numbered when it is made; if not, the order of a block is
            that of its segment plus its offset there.
    """

    def __init__(self, ties: Ties) -> None:
        self.by_block = ties is Ties.FIRST_MADE
        self._by_address = ties is Ties.LOWEST
        self._numbers = count()

    def of_segment(self, address: int) -> int:
        """The place of a new segment's first byte."""
        if self._by_address:
            return address
        return next(self._numbers) << _ADDRESS_BITS | address

    def made(self, block: Block) -> None:
        """Where blocks are numbered, number one that PyTorch makes at this point."""
        if self.by_block:
            block.order = next(self._numbers) << _ADDRESS_BITS

    def joined(self, whole: Block, freed: Block) -> None:
        """Where blocks are numbered, a freed block that takes in another keeps its number."""
        if self.by_block:
            whole.order = freed.order


class ExpandableSegment(NamedTuple):
    """A reservation of addresses that memory is mapped into, page by page.

    One for each stream and pool. Mapped pages are free or allocated as in any segment; unmapped
    ones are address space without memory. Pages are 2 MiB in the small pool and one large segment
    (20 MiB) in the large one.
    """

    address: int
    size: int
    page_bytes: int


class Block:
    """A piece of a segment; its neighbours by address are `previous` and `next`.

    Free blocks of equal size are taken by their `order`.
    """

    __slots__ = (
        "address", "age", "expandable", "next", "order", "pool", "previous", "requested", "size",
        "state",
    )  # fmt: skip

    def __init__(self, address: int, size: int, pool: BlockPool, order: int,
                 expandable: ExpandableSegment | None = None) -> None:  # fmt: skip
        self.address = address
        self.size = size
        self.order = order
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
        rest = Block(
            self.address + size, self.size - size, self.pool, self.order + size, self.expandable
        )
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

    # In an expandable segment

    @property
    def segment(self) -> ExpandableSegment:
        """The expandable segment that the block is in."""
        if self.expandable is None:
            raise TypeError(f"the block at {self.address:#x} is in no expandable segment")
        return self.expandable

    def whole_pages(self) -> tuple[int, int]:
        """Address and bytes of the pages that lie wholly inside; 0 bytes where none does."""
        base, _, page = self.segment
        first = base + round_up(self.address - base, page)
        end = self.address + self.size
        end -= (end - base) % page
        return first, max(end - first, 0)

    def size_if_grown(self) -> int:
        """Bytes of the block and of the unmapped addresses behind it."""
        after = self.next
        return self.size + (after.size if after is not None and after.state is UNMAPPED else 0)

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes from here on are free or unmapped."""
        block: Block | None = self
        room = 0
        while room < size and block is not None and block.state in (FREE, UNMAPPED):
            room += block.size
            block = block.next
        return room >= size


class BlockPool:
    """The free and the unmapped blocks of one stream and size class.

    A sorted list is the fastest structure up to about ten thousand free blocks, and a process
    rarely holds more than two thousand.
    """

    __slots__ = (
        "blocks", "keys", "orders", "other", "remainder", "small", "stream", "tally", "unmapped",
    )  # fmt: skip

    def __init__(self, stream: Stream, orders: Orders, tally: Tally, other: Tally, *, small: bool,
                 expandable: bool) -> None:  # fmt: skip
        self.stream = stream
        self.orders = orders
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

    # Free blocks

    def add(self, block: Block) -> None:
        """Put a free block in."""
        key = block.size << ORDER_BITS | block.order
        insort(self.keys, key)
        self.blocks[key] = block
        block.state = FREE
        block.age = self.tally.lookups

    def remove(self, block: Block) -> None:
        """Take a certain free block out."""
        key = block.size << ORDER_BITS | block.order
        keys = self.keys
        del keys[bisect_left(keys, key)]
        del self.blocks[key]

    def position(self, size: int) -> int:
        """Where the smallest free block of at least `size` bytes stands in the order."""
        return bisect_left(self.keys, size << ORDER_BITS)

    def at(self, position: int) -> Block:
        """The free block at a position in the order of sizes."""
        return self.blocks[self.keys[position]]

    def best_expandable_fit(self, position: int) -> Block:
        """The free block to take with expandable segments, from the smallest that suffices on.

        A block before unmapped addresses counts as large as it could grow, so a larger one that
        cannot grow is taken first, and room to grow is kept.
        """
        found = self.at(position)
        while found.expandable is not None and position + 1 < len(self):
            position += 1
            after = self.at(position)
            if after.size_if_grown() >= found.size_if_grown():
                break
            found = after
        return found

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Block]:
        """Free blocks in the order of sizes, as they are now: the pool may change meanwhile."""
        blocks = self.blocks
        return iter([blocks[key] for key in self.keys])

    # Unmapped blocks of expandable segments

    def reserve(self, segment: ExpandableSegment) -> Block:
        """Add a new reservation, all of it unmapped."""
        order = self.orders.of_segment(segment.address)
        block = Block(segment.address, segment.size, self, order, segment)
        self.add_unmapped(block)
        return block

    def add_unmapped(self, block: Block) -> None:
        """Put an unmapped block in."""
        block.state = UNMAPPED
        insort(self.unmapped, block, key=lambda other: other.address)

    def find_room(self, size: int) -> Block | None:
        """The first block of the lowest run of free and unmapped blocks that holds `size` bytes."""
        for unmapped in self.unmapped:
            first = unmapped
            if unmapped.previous is not None and unmapped.previous.state is FREE:
                first = unmapped.previous
            if first.has_room(size):
                return first
        return None

    def map_pages(self, block: Block, mapped_bytes: int) -> Block:
        """Back the first pages of an unmapped block; returns the free block they are part of now.

        They merge with free neighbours, and the free block joins the pool.
        """
        self.unmapped.remove(block)
        if mapped_bytes < block.size:
            rest = block.split(mapped_bytes)
            self.orders.made(rest)
            self.add_unmapped(rest)
        joined = self._join(block, FREE)
        self.add(joined)
        return joined

    def unmap_pages(self, block: Block) -> Block:
        """Take the memory from a free block's whole pages; returns the unmapped block.

        What lies before and behind them stays free. Unmapped neighbours become one.
        """
        address, size = block.whole_pages()
        self.remove(block)
        if address > block.address:
            before = block
            block = before.split(address - before.address)
            self.orders.joined(block, before)
            self.orders.made(before)
            self.add(before)
        if size < block.size:
            after = block.split(size)
            self.orders.made(after)
            self.add(after)
        joined = self._join(block, UNMAPPED)
        self.add_unmapped(joined)
        return joined

    def _join(self, block: Block, state: State) -> Block:
        """Merge a block with the neighbours of a state, which leave the pool."""
        take_out = self.remove if state is FREE else self.unmapped.remove
        if block.next is not None and block.next.state is state:
            take_out(block.next)
            block.absorb_next()
        before = block.previous
        if before is not None and before.state is state:
            take_out(before)
            before.absorb_next()
            self.orders.joined(before, block)
            block = before
        return block
