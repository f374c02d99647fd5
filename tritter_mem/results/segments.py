"""The allocator's segments as data, as a snapshot and a replay hold them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class State(Enum):
    """What a block is. The last two occur only inside the simulated allocator."""

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


class BlockState(NamedTuple):
    """A block as data: `state` is FREE, ALLOCATED or WAITING."""

    address: int
    size: int
    requested: int
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentState:
    """A segment, or a contiguous mapped range of an expandable one, and the blocks that tile it."""

    address: int
    size: int
    stream: Stream
    small: bool
    expandable: bool = False
    blocks: tuple[BlockState, ...] = ()

    @property
    def allocated_bytes(self) -> int:
        """Bytes of its live blocks."""
        return sum(block.size for block in self.blocks if block.state is ALLOCATED)
