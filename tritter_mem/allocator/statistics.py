"""What the allocator counts, under the names of `torch.cuda.memory_stats`."""
# ruff: noqa: PLR1730  (`max` is a call, and these run once an event)

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tritter_mem.results.run import Fragmentation

NEVER = 1 << 63


class Stat:
    """One quantity: its value now, its largest value, and what was ever added to it."""

    __slots__ = ("allocated", "current", "peak")

    def __init__(self) -> None:
        self.current = self.peak = self.allocated = 0

    def increase(self, amount: int) -> None:
        """Add, and note a new peak."""
        self.current += amount
        self.allocated += amount
        if self.current > self.peak:
            self.peak = self.current

    def decrease(self, amount: int) -> None:
        """Take away."""
        self.current -= amount

    def change(self, amount: int) -> None:
        """Add what is positive, take away what is negative."""
        self.current += amount
        if amount > 0:
            self.allocated += amount
            if self.current > self.peak:
                self.peak = self.current

    def named(self, name: str) -> Iterator[tuple[str, int]]:
        """The four values that `memory_stats` shows for it."""
        yield f"{name}.current", self.current
        yield f"{name}.peak", self.peak
        yield f"{name}.allocated", self.allocated
        yield f"{name}.freed", self.allocated - self.current


class Tally:
    """The quantities of the small or the large pool, over all streams.

    An allocation and its free change the plain numbers, which the allocator adds to in place: a
    call for each would take longer than all the rest. A block that was freed and waits for another
    stream has left `blocks` and `bytes`, and stays in `waiting_blocks`, `waiting_bytes` and
    `requested`.
    """

    __slots__ = (
        "active_blocks_peak",
        "active_bytes_peak",
        "blocks",
        "blocks_ever",
        "blocks_peak",
        "bytes",
        "bytes_ever",
        "bytes_peak",
        "inactive_split",
        "inactive_split_bytes",
        "lookups",
        "requested",
        "requested_ever",
        "requested_peak",
        "reserved",
        "segment",
        "waiting_blocks",
        "waiting_bytes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.blocks = self.blocks_ever = self.blocks_peak = 0
        self.bytes = self.bytes_ever = self.bytes_peak = 0
        self.requested = self.requested_ever = self.requested_peak = 0
        self.waiting_blocks = self.waiting_bytes = 0
        self.active_blocks_peak = self.active_bytes_peak = 0
        self.inactive_split, self.inactive_split_bytes = Stat(), Stat()
        self.reserved, self.segment = Stat(), Stat()
        self.lookups = 0  # searches for a free block, by which garbage collection tells age

    def note_active(self) -> None:
        """Note the peak of live and waiting blocks together; needed only while blocks wait."""
        self.active_blocks_peak = max(self.active_blocks_peak, self.blocks + self.waiting_blocks)
        self.active_bytes_peak = max(self.active_bytes_peak, self.bytes + self.waiting_bytes)

    def reset_peaks(self) -> None:
        """Let every peak start anew from the value now."""
        self.blocks_peak, self.bytes_peak = self.blocks, self.bytes
        self.requested_peak = self.requested
        self.active_blocks_peak = self.active_bytes_peak = 0
        self.note_active()
        for stat in (self.inactive_split, self.inactive_split_bytes, self.reserved, self.segment):
            stat.peak = stat.current

    def named(self, pool: str) -> Iterator[tuple[str, int]]:
        """Every value with its name; `pool` is `all`, `small_pool` or `large_pool`."""
        active_blocks = self.blocks + self.waiting_blocks
        active_bytes = self.bytes + self.waiting_bytes
        # While nothing waits, active is allocated, so the larger of both peaks is the peak.
        active_blocks_peak = max(self.active_blocks_peak, self.blocks_peak)
        active_bytes_peak = max(self.active_bytes_peak, self.bytes_peak)
        for name, now, peak, ever in (
            ("allocation", self.blocks, self.blocks_peak, self.blocks_ever),
            ("allocated_bytes", self.bytes, self.bytes_peak, self.bytes_ever),
            ("active", active_blocks, active_blocks_peak, self.blocks_ever),
            ("active_bytes", active_bytes, active_bytes_peak, self.bytes_ever),
            ("requested_bytes", self.requested, self.requested_peak, self.requested_ever),
        ):
            stat = Stat()
            stat.current, stat.peak, stat.allocated = now, peak, ever
            yield from stat.named(f"{name}.{pool}")
        yield from self.segment.named(f"segment.{pool}")
        yield from self.reserved.named(f"reserved_bytes.{pool}")
        yield from self.inactive_split.named(f"inactive_split.{pool}")
        yield from self.inactive_split_bytes.named(f"inactive_split_bytes.{pool}")


class PeakMoment(NamedTuple):
    """The fullest moment while reserved stood at its peak: what was held and could not be used.

    Attributes:
        allocations: how many allocations had succeeded by then.
    """

    allocations: int
    allocated_bytes: int
    reserved_bytes: int
    largest_free_block_bytes: int
    inactive_split_bytes: int

    @property
    def fragmentation(self) -> Fragmentation:
        """What could not be used then; its ratio is of what was reserved."""
        unused = self.reserved_bytes - self.allocated_bytes
        return Fragmentation(
            reserved_not_allocated_bytes=unused,
            ratio=unused / self.reserved_bytes if self.reserved_bytes else 0.0,
            largest_free_block_bytes=self.largest_free_block_bytes,
            inactive_split_bytes=self.inactive_split_bytes,
        )


class Lap(NamedTuple):
    """Peaks since the lap before."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int


class Counters:
    """Everything that one allocator counts.

    Args:
        largest_free: tells the largest free block, for the moment of the peak.
        max_split_bytes: from this size on, blocks and segments count as oversize.
    """

    def __init__(self, largest_free: Callable[[], int], max_split_bytes: int) -> None:
        self.small, self.large = Tally(), Tally()
        self.reserved, self.segment = Stat(), Stat()
        self.inactive_split, self.inactive_split_bytes = Stat(), Stat()
        self.oversize_allocations, self.oversize_segments = Stat(), Stat()
        self.num_alloc_retries = self.num_ooms = self.num_sync_all_streams = 0
        self.num_device_alloc = self.num_device_free = self.num_oom_rejections = 0
        self._largest_free = largest_free
        self._max_split = max_split_bytes
        self._blocks_peak = self._requested_peak = 0
        self._active_blocks_peak = self._active_bytes_peak = 0
        self._bytes_peak = self._lap_bytes_peak = self._lap_reserved_peak = 0
        self._moment: PeakMoment | None = None
        # Allocated at the peak moment; NEVER while reserved is below its peak.
        self._fullest = self._fullest_before = -1

    def tallies(self, *, small: bool) -> tuple[Tally, Tally]:
        """Of a size class, and of the other one."""
        return (self.small, self.large) if small else (self.large, self.small)

    # Requests

    def allocation(self, tally: Tally, other: Tally, size: int, requested: int) -> None:
        """Count a block that was handed out."""
        tally.blocks_ever += 1
        tally.blocks = blocks = tally.blocks + 1
        if blocks > tally.blocks_peak:
            tally.blocks_peak = blocks
        if blocks + other.blocks > self._blocks_peak:
            self._blocks_peak = blocks + other.blocks
        tally.bytes_ever += size
        tally.bytes = allocated = tally.bytes + size
        if allocated > tally.bytes_peak:
            tally.bytes_peak = allocated
        allocated += other.bytes
        if allocated > self._lap_bytes_peak:
            self._lap_bytes_peak = allocated
        if allocated > self._fullest:
            self._note_fullest(allocated)
        self._request(tally, other, requested)
        if size >= self._max_split:
            self.oversize_allocations.increase(1)

    def _request(self, tally: Tally, other: Tally, requested: int) -> None:
        tally.requested_ever += requested
        tally.requested = now = tally.requested + requested
        if now > tally.requested_peak:
            tally.requested_peak = now
        if now + other.requested > self._requested_peak:
            self._requested_peak = now + other.requested
        if tally.waiting_blocks or other.waiting_blocks:
            self._note_active()

    def freed(self, tally: Tally, size: int) -> None:
        """Count a block that its owner gave back, whether or not it has to wait."""
        tally.blocks -= 1
        tally.bytes -= size
        if size >= self._max_split:
            self.oversize_allocations.decrease(1)

    def waits(self, tally: Tally, size: int) -> None:
        """Count a freed block that waits for another stream."""
        tally.waiting_blocks += 1
        tally.waiting_bytes += size
        self._note_active()

    def waited(self, tally: Tally, size: int) -> None:
        """Count a block that no longer waits."""
        tally.waiting_blocks -= 1
        tally.waiting_bytes -= size

    def _note_active(self) -> None:
        small, large = self.small, self.large
        small.note_active()
        large.note_active()
        blocks = small.blocks + small.waiting_blocks + large.blocks + large.waiting_blocks
        self._active_blocks_peak = max(self._active_blocks_peak, blocks)
        self._active_bytes_peak = max(self._active_bytes_peak, self.active_bytes)

    def inactive_split_changes(self, tally: Tally, blocks: int, size: int) -> None:
        """Count free parts of segments."""
        if blocks:
            tally.inactive_split.change(blocks)
            self.inactive_split.change(blocks)
        tally.inactive_split_bytes.change(size)
        self.inactive_split_bytes.change(size)

    # Segments

    def took(self, tally: Tally, size: int, *, segment: bool) -> None:
        """Count memory from the driver: a segment, or pages of an expandable one."""
        self.num_device_alloc += 1
        grows = self.reserved.current + size > self.reserved.peak
        tally.reserved.increase(size)
        self.reserved.increase(size)
        self._lap_reserved_peak = max(self._lap_reserved_peak, self.reserved.current)
        if grows:
            self._note_fullest(self.allocated_bytes)
        elif self.reserved.current == self.reserved.peak:
            self._fullest = self._fullest_before
        if segment:
            self._segments(tally, size, 1)

    def gave_back(self, tally: Tally, size: int, *, segment: bool) -> None:
        """Count memory that went back to the driver."""
        self.num_device_free += 1
        if self.reserved.current == self.reserved.peak:
            self._fullest, self._fullest_before = NEVER, self._fullest
        tally.reserved.decrease(size)
        self.reserved.decrease(size)
        if segment:
            self._segments(tally, size, -1)

    def _segments(self, tally: Tally, size: int, change: int) -> None:
        tally.segment.change(change)
        self.segment.change(change)
        if size >= self._max_split:
            self.oversize_segments.change(change)

    def start_peaks(self) -> None:
        """Let every peak start at the state now, and the calls to the driver at none."""
        for tally in (self.small, self.large):
            tally.reset_peaks()
        self._blocks_peak = self.small.blocks + self.large.blocks
        self._requested_peak = self.small.requested + self.large.requested
        self._bytes_peak = self._lap_bytes_peak = self.allocated_bytes
        self._lap_reserved_peak = self.reserved.current
        self._active_blocks_peak = self._active_bytes_peak = 0
        self._note_active()
        for stat in (self.reserved, self.segment, self.inactive_split, self.inactive_split_bytes,
                     self.oversize_allocations, self.oversize_segments):  # fmt: skip
            stat.peak = stat.current
        self.num_device_alloc = self.num_device_free = 0
        self._note_fullest(self.allocated_bytes)

    # Reading

    @property
    def allocated_bytes(self) -> int:
        """Live blocks."""
        return self.small.bytes + self.large.bytes

    @property
    def allocated_peak_bytes(self) -> int:
        """The largest that `allocated_bytes` ever was."""
        return max(self._bytes_peak, self._lap_bytes_peak)

    @property
    def active_bytes(self) -> int:
        """Live and waiting blocks."""
        return self.allocated_bytes + self.small.waiting_bytes + self.large.waiting_bytes

    @property
    def allocations(self) -> int:
        """Blocks that were ever handed out."""
        return self.small.blocks_ever + self.large.blocks_ever

    def lap(self) -> Lap:
        """Peaks since the last call."""
        lap = Lap(self._lap_bytes_peak, self._lap_reserved_peak)
        self._bytes_peak = max(self._bytes_peak, lap.allocated_peak_bytes)
        self._lap_bytes_peak, self._lap_reserved_peak = self.allocated_bytes, self.reserved.current
        return lap

    def moment(self) -> PeakMoment:
        """The fullest moment at the reserved peak."""
        return self._moment or self._moment_now()

    def _note_fullest(self, allocated: int) -> None:
        self._fullest = allocated
        self._moment = self._moment_now()

    def _moment_now(self) -> PeakMoment:
        return PeakMoment(
            allocations=self.allocations,
            allocated_bytes=self.allocated_bytes,
            reserved_bytes=self.reserved.current,
            largest_free_block_bytes=self._largest_free(),
            inactive_split_bytes=self.inactive_split_bytes.current,
        )

    def named(self) -> dict[str, int]:
        """All of it, under PyTorch's names."""
        found = dict(self._total().named("all"))
        found |= dict(self.large.named("large_pool"))
        found |= dict(self.small.named("small_pool"))
        found |= dict(self.oversize_allocations.named("oversize_allocations"))
        found |= dict(self.oversize_segments.named("oversize_segments"))
        for name in ("num_alloc_retries", "num_ooms", "num_oom_rejections", "num_sync_all_streams",
                     "num_device_alloc", "num_device_free"):  # fmt: skip
            found[name] = getattr(self, name)
        return found

    def _total(self) -> Tally:
        total = Tally()
        for name in ("blocks", "blocks_ever", "bytes", "bytes_ever", "requested", "requested_ever",
                     "waiting_blocks", "waiting_bytes"):  # fmt: skip
            setattr(total, name, getattr(self.small, name) + getattr(self.large, name))
        total.blocks_peak, total.bytes_peak = self._blocks_peak, self.allocated_peak_bytes
        total.requested_peak = self._requested_peak
        total.active_blocks_peak = self._active_blocks_peak
        total.active_bytes_peak = self._active_bytes_peak
        total.inactive_split, total.inactive_split_bytes = (
            self.inactive_split, self.inactive_split_bytes)  # fmt: skip
        total.reserved, total.segment = self.reserved, self.segment
        return total
