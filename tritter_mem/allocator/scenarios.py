"""The recorded requests under other settings: which ones to try, and one run of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from tritter_mem.allocator.addresses import RecordedAddresses, ascending_beyond
from tritter_mem.allocator.blocks import PrivateStream, Stream
from tritter_mem.allocator.history import History
from tritter_mem.allocator.outcome import TIMELINE_COLUMNS, OutOfMemory, Scenario
from tritter_mem.allocator.player import SERVING, STEPS_A_CALL, Player, Progress
from tritter_mem.allocator.segments import SegmentState
from tritter_mem.allocator.settings import AllocatorSettings, parse_alloc_conf
from tritter_mem.allocator.simulator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.statistics import PeakMoment
from tritter_mem.results import Fragmentation, Timeline

TIMELINE_ROWS = 500
AS_RECORDED = "as recorded"
FRESH_START = "as recorded, fresh start"
DEFAULTS = "PyTorch's defaults"
EXPANDABLE = "expandable_segments:True"
STANDARD = (
    "",
    EXPANDABLE,
    "max_split_size_mb:64",
    "max_split_size_mb:128",
    "max_split_size_mb:256",
    "roundup_power2_divisions:4",
    "garbage_collection_threshold:0.8",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A scenario to run; `fresh` ones begin with an empty cache."""

    name: str
    settings: AllocatorSettings
    fresh: bool = True


def plans_for(history: History, alloc_confs: Sequence[str]) -> list[Plan]:
    """The recorded settings first, then the standard ones that differ, then those asked for.

    Raises:
        ConfigError: a configuration is wrong.
    """
    asked = [
        Plan(name=conf or DEFAULTS, settings=parse_alloc_conf(conf))
        for conf in dict.fromkeys(alloc_confs)
        if conf not in STANDARD
    ]
    standard = [
        Plan(name=conf or DEFAULTS, settings=settings)
        for conf in STANDARD
        if (settings := parse_alloc_conf(conf)) != history.settings
    ]
    return [*_as_recorded(history), *standard, *asked]


def _as_recorded(history: History) -> Iterator[Plan]:
    yield Plan(name=AS_RECORDED, settings=history.settings, fresh=False)
    if history.start:
        yield Plan(name=FRESH_START, settings=history.settings)


def run_scenario(
    history: History, plan: Plan, capacity_bytes: int | None, progress: Progress
) -> Scenario:
    """Replay the history under a scenario's settings, up to its end or to running out of memory.

    Args:
        history: what to replay; `verify` has marked its releases.
        plan: the settings, and how to begin.
        capacity_bytes: what segments may take; None: no limit.
        progress: told how many steps are done.
    """
    player = _player(history, plan, capacity_bytes)
    failure: OutOfMemory | None = None
    rows: list[tuple[float, ...]] = []
    try:
        _start(player, plan)
        rows.append(_row(history, player, 0))
        for first, last in _stretches(len(history.steps)):
            player.play(first, last)
            rows.append(_row(history, player, last))
            progress(last - first)
    except OutOfMemoryError as error:
        failure = _failure(player, error)
        rows.append(_row(history, player, max(player.failed_step or 0, 0)))
    return _scenario(plan, player.allocator, failure, rows)


def segments_at_peak(
    history: History, plan: Plan, scenario: Scenario, capacity_bytes: int | None
) -> tuple[SegmentState, ...]:
    """Run a scenario again up to its fullest moment at the reserved peak, and read its segments."""
    player = _player(history, plan, capacity_bytes)
    try:
        _start(player, plan)
    except OutOfMemoryError:  # then that is as far as it came the first time
        return tuple(player.allocator.segments())
    left = scenario.allocations_at_peak - player.allocator.counters.allocations
    player.play(0, _step_after(history, left))
    return tuple(player.allocator.segments())


def _step_after(history: History, allocations: int) -> int:
    """How many steps serve so many requests."""
    serving = (i for i, step in enumerate(history.steps) if step in SERVING)
    return next(islice(serving, allocations - 1, None), -1) + 1 if allocations > 0 else 0


def _player(history: History, plan: Plan, capacity_bytes: int | None) -> Player:
    if plan.fresh:
        place = ascending_beyond(history)
        return Player(history, CachingAllocator(plan.settings, capacity_bytes, place=place))
    recorded = RecordedAddresses(history)
    return Player(
        history,
        CachingAllocator(
            plan.settings, capacity_bytes, place=recorded.place, observer=recorded.observe
        ),
    )


def _start(player: Player, plan: Plan) -> None:
    if plan.fresh:
        player.start_fresh()
    else:
        player.start_recorded()
    player.allocator.lap()


def _stretches(steps: int) -> Iterator[tuple[int, int]]:
    """Runs of steps: one for each row of the timeline, and short enough to show progress."""
    length = min(max(steps // TIMELINE_ROWS, 1), STEPS_A_CALL)
    for first in range(0, steps, length):
        yield first, min(first + length, steps)


def _row(history: History, player: Player, step: int) -> tuple[float, ...]:
    """The recorded event that comes next, and the peaks since the row before."""
    done = step >= len(history.steps)
    event = history.recorded_events if done else history.events[step]
    return (event, *player.allocator.lap())


def _failure(player: Player, error: OutOfMemoryError) -> OutOfMemory:
    history, step = player.history, player.failed_step
    stream: Stream = 0
    if step is not None and step >= 0:
        stream = history.stream(history.numbers[step])
    return OutOfMemory(
        event=None if step is None or step < 0 else history.events[step],
        stream=stream.stream if isinstance(stream, PrivateStream) else stream,
        requested_bytes=error.requested_bytes,
        segment_bytes=error.segment_bytes,
        allocated_bytes=error.allocated_bytes,
        reserved_bytes=error.reserved_bytes,
    )


def _scenario(
    plan: Plan,
    allocator: CachingAllocator,
    failure: OutOfMemory | None,
    rows: Sequence[tuple[float, ...]],
) -> Scenario:
    moment = allocator.peak_moment
    return Scenario(
        name=plan.name,
        conf=plan.settings.conf,
        fresh=plan.fresh,
        allocated_peak_bytes=allocator.counters.allocated_peak_bytes,
        reserved_peak_bytes=allocator.counters.reserved.peak,
        fragmentation=_fragmentation(moment),
        alloc_retries=allocator.counters.num_alloc_retries,
        out_of_memory=failure,
        without_effect=plan.settings.without_effect,
        timeline=Timeline(columns=TIMELINE_COLUMNS, rows=tuple(rows)),
        allocations_at_peak=moment.allocations,
    )


def _fragmentation(moment: PeakMoment) -> Fragmentation:
    unused = moment.reserved_bytes - moment.allocated_bytes
    return Fragmentation(
        reserved_not_allocated_bytes=unused,
        ratio=unused / moment.reserved_bytes if moment.reserved_bytes else 0.0,
        largest_free_block_bytes=moment.largest_free_block_bytes,
        inactive_split_bytes=moment.inactive_split_bytes,
    )
