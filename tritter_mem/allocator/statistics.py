"""What the allocator counts, under the names of `torch.cuda.memory_stats`."""
# ruff: noqa: PLR1730  (`max` is a call, and these run once an event)

from __future__ import annotations

from collections.abc import Iterator


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
