"""Expandable segments: one reservation of addresses a stream and pool, mapped page by page.

A reservation is a chain of blocks. Mapped ones are free or allocated as in any segment; unmapped
ones, on page boundaries, are address space without memory. Pages are 2 MiB in the small pool and
one large segment (20 MiB) in the large one.
"""

from __future__ import annotations

from bisect import insort

from tritter_mem.allocator.blocks import (
    FREE,
    UNMAPPED,
    Block,
    BlockPool,
    ExpandableSegment,
    State,
)
from tritter_mem.allocator.rules import round_up


def reserve(pool: BlockPool, segment: ExpandableSegment) -> Block:
    """Make a new reservation, all of it unmapped."""
    block = Block(segment.address, segment.size, pool, segment)
    add_unmapped(block)
    return block


def add_unmapped(block: Block) -> None:
    """Mark a block as unmapped and let its pool find it."""
    block.state = UNMAPPED
    insort(block.pool.unmapped, block, key=lambda other: other.address)


def best_fit(pool: BlockPool, position: int) -> Block:
    """The free block to take, from the smallest that suffices on.

    A block before unmapped addresses counts as large as it could grow, so a larger one that cannot
    grow is taken first, and room to grow is kept.
    """
    found = pool.at(position)
    while found.expandable is not None and position + 1 < len(pool):
        position += 1
        after = pool.at(position)
        if expandable_size(after) >= expandable_size(found):
            break
        found = after
    return found


def expandable_size(block: Block) -> int:
    """Bytes of a block and of the unmapped addresses behind it."""
    after = block.next
    return block.size + (after.size if after is not None and after.state is UNMAPPED else 0)


def find_room(pool: BlockPool, size: int) -> Block | None:
    """The lowest run of free and unmapped blocks with room for `size` bytes; its first block."""
    for unmapped in pool.unmapped:
        first = unmapped
        if unmapped.previous is not None and unmapped.previous.state is FREE:
            first = unmapped.previous
        if _has_room(first, size):
            return first
    return None


def _has_room(first: Block, size: int) -> bool:
    block: Block | None = first
    room = 0
    while room < size and block is not None and block.state in (FREE, UNMAPPED):
        room += block.size
        block = block.next
    return room >= size


def bytes_to_map(block: Block, size: int) -> int:
    """Whole pages for the first `size` bytes of an unmapped block."""
    return round_up(size, _page_bytes(block))


def map_pages(block: Block, mapped_bytes: int) -> Block:
    """Back the first pages of an unmapped block; returns the free block that they are now part of.

    They merge with free neighbours, and the free block joins the pool.
    """
    pool = block.pool
    pool.unmapped.remove(block)
    if mapped_bytes < block.size:
        add_unmapped(block.split(mapped_bytes))
    joined = _join(block, FREE)
    pool.add(joined)
    return joined


def _join(block: Block, state: State) -> Block:
    """Become one with the neighbours of a state, which leave their pool."""
    pool = block.pool
    take_out = pool.remove if state is FREE else pool.unmapped.remove
    if block.next is not None and block.next.state is state:
        take_out(block.next)
        block.absorb_next()
    before = block.previous
    if before is not None and before.state is state:
        take_out(before)
        before.absorb_next()
        block = before
    return block


def whole_pages(block: Block) -> tuple[int, int]:
    """Address and bytes of the pages that lie wholly inside a block; 0 bytes where none does."""
    page, base = _page_bytes(block), _segment(block).address
    first = base + round_up(block.address - base, page)
    end = block.address + block.size
    end -= (end - base) % page
    return first, max(end - first, 0)


def unmap_pages(block: Block) -> Block:
    """Take the memory from a free block's whole pages; returns the unmapped block.

    What lies before and behind them stays free. Unmapped neighbours become one.
    """
    pool = block.pool
    address, size = whole_pages(block)
    pool.remove(block)
    if address > block.address:
        before = block
        block = before.split(address - before.address)
        pool.add(before)
    if size < block.size:
        pool.add(block.split(size))
    joined = _join(block, UNMAPPED)
    add_unmapped(joined)
    return joined


def _segment(block: Block) -> ExpandableSegment:
    if block.expandable is None:
        raise TypeError(f"the block at {block.address:#x} is in no expandable segment")
    return block.expandable


def _page_bytes(block: Block) -> int:
    return _segment(block).page_bytes
