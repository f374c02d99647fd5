"""The allocator's size rules: small pure functions over bytes.

Source: `c10/core/AllocatorConfig.h` and `c10/cuda/CUDACachingAllocator.cpp` of PyTorch, whose names
for the constants stand beside them. The rules are the same from PyTorch 2.1 to 2.13.
"""

from __future__ import annotations

from collections.abc import Sequence

from tritter_mem.units import MiB

BLOCK_BYTES = 512  # kMinBlockSize: every block is a multiple of it
SMALL_BYTES = MiB  # kSmallSize: the largest request that the small pool serves
SMALL_SEGMENT_BYTES = 2 * MiB  # kSmallBuffer: a segment, or a page, of the small pool
LARGE_SEGMENT_BYTES = 20 * MiB  # kLargeBuffer: a segment, or a page, of the large pool
OWN_SEGMENT_BYTES = 10 * MiB  # kMinLargeAlloc: from here on a request gets its own segment
SEGMENT_ROUNDING_BYTES = 2 * MiB  # kRoundLarge: what such a segment is a multiple of

UNLIMITED = 1 << 62  # more than any size: no limit is set

# roundup_power2_divisions is set for each power of two from 1 MiB to 32 GiB and beyond.
DIVISION_INTERVALS = 16


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def round_request(size_bytes: int, divisions: Sequence[int] | None = None) -> int:
    """Bytes of the block that serves a request (`round_size`).

    Args:
        size_bytes: the bytes asked for.
        divisions: steps between two powers of two, one entry for each of `DIVISION_INTERVALS`
            intervals from 1 MiB on; smaller sizes use the first, larger ones the last entry.
    """
    if size_bytes < BLOCK_BYTES:
        return BLOCK_BYTES
    steps = divisions[division_interval(size_bytes)] if divisions else 0
    if steps > 1 and size_bytes > BLOCK_BYTES * steps:
        return round_to_division(size_bytes, steps)
    return round_up(size_bytes, BLOCK_BYTES)


def division_interval(size_bytes: int) -> int:
    """Which entry of `roundup_power2_divisions` holds for a size: 0 below 2 MiB, 1 below 4 MiB."""
    return min(max(size_bytes.bit_length() - MiB.bit_length(), 0), DIVISION_INTERVALS - 1)


def round_to_division(size_bytes: int, divisions: int) -> int:
    """Round up to the next of `divisions` equal steps between two powers of two.

    With four divisions 1,200 becomes 1,280, as the steps from 1,024 are 1,280, 1,536 and 1,792.
    """
    floor = 1 << (size_bytes.bit_length() - 1)
    return round_up(size_bytes, floor // divisions or floor)


def is_small(block_bytes: int) -> bool:
    """Whether a rounded request is served by the small pool."""
    return block_bytes <= SMALL_BYTES


def segment_bytes(block_bytes: int, large_segment_bytes: int = LARGE_SEGMENT_BYTES) -> int:
    """Bytes of the segment that `cudaMalloc` is asked for (`get_allocation_size`)."""
    if is_small(block_bytes):
        return SMALL_SEGMENT_BYTES
    if block_bytes < OWN_SEGMENT_BYTES:
        return large_segment_bytes
    return round_up(block_bytes, SEGMENT_ROUNDING_BYTES)


def smallest_remainder(*, small: bool, expandable: bool) -> int:
    """Bytes that must be left over for a block to be split (`should_split`).

    A smaller rest stays with the request: in the large pool everything up to 1 MiB does.
    """
    return BLOCK_BYTES if small or expandable else SMALL_BYTES + 1
