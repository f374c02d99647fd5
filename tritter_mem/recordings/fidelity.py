"""A replay with the recorded settings, compared with the recording."""

from __future__ import annotations

from contextlib import suppress

from tritter_mem.allocator.addresses import SegmentAction
from tritter_mem.allocator.blocks import Ties
from tritter_mem.allocator.caching_allocator import Action, CachingAllocator
from tritter_mem.recordings.memory_history import (
    DO_ALLOC,
    DO_FREE,
    DO_RELEASE,
    DO_RETRY,
    DO_TRY,
    History,
    NewSegment,
    Release,
)
from tritter_mem.recordings.player import STEPS_A_CALL, HistoryPlayer, Progress, ascending_beyond
from tritter_mem.results.replay import Fidelity, Recorded
from tritter_mem.results.segments import Stream

CONTRADICTIONS = (LookupError, ValueError, TypeError, AttributeError)
"""What a replay raises where blocks or segments overlap, or are freed where there are none."""


def verify(history: History, progress: Progress) -> tuple[Recorded, Fidelity]:
    """Replay with the recorded settings and count what is as recorded.

    Sets the history's `ties` to what reproduces most of it, and `complete` of each of its releases:
    whether it released all there was.

    Raises:
        CONTRADICTIONS: the history contradicts itself, whichever ties it had.
    """
    fidelities: dict[Ties, Fidelity] = {}
    for ties in Ties:
        history.ties = ties
        with suppress(*CONTRADICTIONS):
            replayed, fidelities[ties] = _verify(history, progress)
            if fidelities[ties].exact:
                return replayed, fidelities[ties]
    history.ties = max(fidelities, key=lambda ties: _same(fidelities[ties]), default=Ties.LOWEST)
    return _verify(history, progress)


def _same(fidelity: Fidelity) -> tuple[int, int]:
    """How much of a recording a replay reproduced."""
    differ = fidelity.segments_missed + fidelity.segments_extra
    return fidelity.addresses_matched, -differ


def _verify(history: History, progress: Progress) -> tuple[Recorded, Fidelity]:
    """Replay with the recorded settings and the history's `ties`."""
    driver = _RecordedDriver(history)
    allocator = CachingAllocator(
        history.settings, addresses=driver, ties=history.ties, observer=driver.observe
    )
    player = HistoryPlayer(history, allocator)
    player.start_recorded()
    reserved_start = allocator.reserved_bytes
    due: dict[int, list[NewSegment]] = {}
    for new in history.new_segments:
        due.setdefault(new.step, []).append(new)
    matched = _play_and_compare(player, driver, due, progress)
    fidelity = Fidelity(
        segments_matched=driver.matched,
        segments_missed=driver.missed,
        segments_extra=driver.extra,
        addresses_matched=matched,
        addresses_total=history.recorded.allocations,
    )
    replayed = Recorded(
        reserved_start_bytes=reserved_start,
        reserved_peak_bytes=allocator.counters.reserved.peak,
        reserved_end_bytes=allocator.reserved_bytes,
        allocations=history.recorded.allocations,
        segment_allocations=allocator.counters.num_device_alloc,
        segment_releases=allocator.counters.num_device_free,
    )
    return replayed, fidelity


def _play_and_compare(
    player: HistoryPlayer,
    driver: _RecordedDriver,
    due: dict[int, list[NewSegment]],
    progress: Progress,
) -> int:
    """Do every step; returns how many requests got the recorded address."""
    history, matched = player.history, 0
    for index, (step, number) in enumerate(zip(history.steps, history.numbers, strict=True)):
        if index in due:
            driver.expect(due[index])
            matched += _same_address(player, step, number)
            driver.settle()
        else:
            matched += _same_address(player, step, number)
        if index % STEPS_A_CALL == STEPS_A_CALL - 1:
            progress(STEPS_A_CALL)
    progress(len(history.steps) % STEPS_A_CALL)
    return matched


def _same_address(player: HistoryPlayer, step: int, number: int) -> bool:
    """Do a step; whether it served a request at the recorded address."""
    history, allocator = player.history, player.allocator
    if step in (DO_ALLOC, DO_RETRY):
        block = allocator.malloc(
            history.sizes[number], history.stream(number), new_memory=step == DO_RETRY
        )
        player.blocks[number] = block
        return block.address == history.addresses[number]
    if step == DO_FREE:
        allocator.free(player.blocks.pop(number))
    elif step == DO_RELEASE:
        _release_as_recorded(allocator, history.releases[number])
    elif step != DO_TRY:  # which failed when it was recorded
        player.play_rare(step, number)
    return False


def _release_as_recorded(allocator: CachingAllocator, release: Release) -> None:
    """Release the recorded segments, and note whether anything is left to release."""
    if release.pages:  # only the whole cache is ever unmapped
        release.complete = True
        allocator.empty_cache()
        return
    shared = False
    for address, _ in release.segments:
        block = allocator.segments_by_address.get(address)
        private = block is not None and block.pool.private
        shared |= allocator.release_at(address) and not private
    release.complete = shared and not allocator.can_release()


class _RecordedDriver:
    """Gives segments the recorded addresses, and compares what is taken with the recording.

    Attributes:
        matched: segments that both took, with the same address, bytes and stream.
        missed: segments that only the recording took.
        extra: segments that only the replay took.
    """

    def __init__(self, history: History) -> None:
        self.matched = self.missed = self.extra = 0
        self._due: list[NewSegment] = []
        self._beyond = ascending_beyond(history)

    def expect(self, due: list[NewSegment]) -> None:
        """Begin a step, for which the recording took these segments."""
        self._due = due

    def settle(self) -> None:
        """End the step: what it did not take was missed."""
        self.missed += len(self._due)
        self._due = []

    def reserve(self, action: SegmentAction, size: int, stream: Stream) -> int:
        """The address that the recording gave it."""
        mapped = action == "segment_map"
        for new in self._due:
            if new.mapped == mapped and new.stream == stream and (mapped or new.size == size):
                return new.address
        return self._beyond.reserve(action, size, stream)

    def release(self, address: int, size: int) -> None:
        """Nothing: the recording says where the next one is."""

    def observe(self, action: Action, address: int, size: int, stream: Stream) -> None:
        """Count what the simulation takes."""
        if action not in ("segment_alloc", "segment_map"):
            return
        same = [n for n in self._due if (n.address, n.size, n.stream) == (address, size, stream)]
        if same:
            self._due.remove(same[0])
            self.matched += 1
        else:
            self.extra += 1
