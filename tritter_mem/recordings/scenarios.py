"""The recorded requests under other settings: which to try, a run of each, and which to use."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.settings import AllocatorSettings, parse_alloc_conf
from tritter_mem.recordings.memory_history import History
from tritter_mem.recordings.player import (
    SERVING,
    STEPS_A_CALL,
    HistoryPlayer,
    Progress,
    RecordedAddresses,
)
from tritter_mem.results.allocations import Allocation, Allocations, Frame, joined
from tritter_mem.results.replay import TIMELINE_COLUMNS, Advice, Scenario, ScenarioOutOfMemory
from tritter_mem.results.run import COMPONENTS, Holding, Timeline, by_module
from tritter_mem.results.segments import PrivateStream, SegmentState, Stream
from tritter_mem.units import MiB, format_bytes

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
# A change of settings must save this much to be worth it.
WORTHWHILE_RATIO = 0.01
WORTHWHILE_BYTES = 20 * MiB
# Savings this close count as equal; the first in the table wins.
EQUAL_RATIO = 0.005


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
        history: what to replay, after `verify` has found out which releases were complete.
        plan: the settings, and how to begin.
        capacity_bytes: what segments may take; None: no limit.
        progress: called with how many steps are done.
    """
    player = _player(history, plan, capacity_bytes)
    failure: ScenarioOutOfMemory | None = None
    rows: list[tuple[float, ...]] = []
    try:
        _start(player, plan)
        rows.append(_row(history, player, 0))
        for first, last in _rows_of_steps(len(history.steps)):
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


_MODULE_WORDS = re.compile(rf"(?P<component>{'|'.join(COMPONENTS)}): (?P<module>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldAtPeak:
    """The blocks at a scenario's allocated peak, which they sum to, by who asked for them.

    Attributes:
        by_stack: None where no call stacks are recorded.
        by_module: None where the history has no words such as `weights: Llama.model.norm`.
    """

    by_stack: Allocations | None = None
    by_module: Allocations | None = None


def held_at_peak(
    history: History, plan: Plan, scenario: Scenario, capacity_bytes: int | None
) -> HeldAtPeak:
    """Run a scenario again up to its allocated peak, and read who asked for each block.

    Args:
        history: what was replayed.
        plan: the scenario's settings.
        scenario: how it went, with the whole of its timeline.
        capacity_bytes: what segments may take; None: no limit.
    """
    if not any(history.stack_numbers):
        return HeldAtPeak()
    sizes = _blocks_at_peak(history, plan, scenario, capacity_bytes)
    return HeldAtPeak(by_stack=_by_stack(history, sizes), by_module=_by_module(history, sizes))


def _by_stack(history: History, sizes: Mapping[int, int]) -> Allocations | None:
    if not any(history.stacks):
        return None
    found = (
        Allocation(path=history.stack(number), allocated_bytes=size)
        for number, size in sizes.items()
    )
    return Allocations(by="stack", allocations=joined(found))


def _by_module(history: History, sizes: Mapping[int, int]) -> Allocations | None:
    """By the words that the code put into the history, `component: module`."""
    if not any(_MODULE_WORDS.fullmatch(label) for label in history.labels):
        return None
    held: defaultdict[tuple[str, str], int] = defaultdict(int)
    for number, size in sizes.items():
        words = _MODULE_WORDS.fullmatch(history.label(number))
        held[(words["module"], words["component"]) if words else ("", "activations")] += size
    return by_module(
        [Holding(module=module, component=component, allocated_bytes=size)
         for (module, component), size in held.items()]
    )  # fmt: skip


def _blocks_at_peak(
    history: History, plan: Plan, scenario: Scenario, capacity_bytes: int | None
) -> dict[int, int]:
    """The bytes of each live block, by its request's number."""
    player = _player(history, plan, capacity_bytes)
    peak = scenario.allocated_peak_bytes
    row = next(at for at, row in enumerate(scenario.timeline.rows) if row[1] == peak)
    first, last = ((0, 0), *_rows_of_steps(len(history.steps)))[row]
    try:
        _start(player, plan)
        player.play(0, first)
        for step in range(first, last):
            if player.allocator.allocated_bytes == peak or player.try_until(step, peak):
                break
    except OutOfMemoryError:
        pass  # the peak was before
    return {number: block.size for number, block in player.blocks.items()}


def _step_after(history: History, allocations: int) -> int:
    """How many steps serve so many requests."""
    serving = (i for i, step in enumerate(history.steps) if step in SERVING)
    return next(islice(serving, allocations - 1, None), -1) + 1 if allocations > 0 else 0


def _player(history: History, plan: Plan, capacity_bytes: int | None) -> HistoryPlayer:
    if plan.fresh:
        allocator = CachingAllocator(plan.settings, capacity_bytes, ties=history.ties)
    else:
        recorded = RecordedAddresses(history)
        allocator = CachingAllocator(
            plan.settings,
            capacity_bytes,
            addresses=recorded,
            ties=history.ties,
            observer=recorded.observe,
        )
    return HistoryPlayer(history, allocator)


def _start(player: HistoryPlayer, plan: Plan) -> None:
    if plan.fresh:
        player.start_fresh()
    else:
        player.start_recorded()
    player.allocator.lap()


def _rows_of_steps(steps: int) -> Iterator[tuple[int, int]]:
    """First and last step of each row of the timeline, short enough to show progress."""
    length = min(max(steps // TIMELINE_ROWS, 1), STEPS_A_CALL)
    for first in range(0, steps, length):
        yield first, min(first + length, steps)


def _row(history: History, player: HistoryPlayer, step: int) -> tuple[float, ...]:
    """The recorded event that comes next, and the peaks since the row before."""
    done = step >= len(history.steps)
    event = history.recorded_events if done else history.events[step]
    return (event, *player.allocator.lap())


def _failure(player: HistoryPlayer, error: OutOfMemoryError) -> ScenarioOutOfMemory:
    history, step = player.history, player.failed_step
    stream: Stream = 0
    path: tuple[Frame, ...] = ()
    if step is not None and step >= 0:
        stream = history.stream(history.numbers[step])
        path = history.stack(history.numbers[step])
    return ScenarioOutOfMemory(
        event=None if step is None or step < 0 else history.events[step],
        stream=stream.stream if isinstance(stream, PrivateStream) else stream,
        requested_bytes=error.requested_bytes,
        segment_bytes=error.segment_bytes,
        allocated_bytes=error.allocated_bytes,
        reserved_bytes=error.reserved_bytes,
        path=path,
    )


def _scenario(
    plan: Plan,
    allocator: CachingAllocator,
    failure: ScenarioOutOfMemory | None,
    rows: Sequence[tuple[float, ...]],
) -> Scenario:
    moment = allocator.peak_moment
    return Scenario(
        name=plan.name,
        conf=plan.settings.conf,
        fresh=plan.fresh,
        allocated_peak_bytes=allocator.counters.allocated_peak_bytes,
        reserved_peak_bytes=allocator.counters.reserved.peak,
        fragmentation=moment.fragmentation,
        alloc_retries=allocator.counters.num_alloc_retries,
        out_of_memory=failure,
        without_effect=plan.settings.without_effect,
        timeline=Timeline(columns=TIMELINE_COLUMNS, rows=tuple(rows)),
        allocations_at_peak=moment.allocations,
    )


RAN_OUT = (
    " The job ran out of memory while it was recorded: what it would have asked for next is "
    "unknown."
)


def advise(
    scenarios: Sequence[Scenario],
    capacity_bytes: int | None,
    needed: Scenario | None = None,
    *,
    ran_out: bool = False,
) -> Advice:
    """Say which setting to use, and when none helps.

    Args:
        scenarios: the recorded settings first.
        capacity_bytes: what segments may take; None: no limit.
        needed: where nothing fits, the scenario that needs least, run without a limit.
        ran_out: the job ran out of memory while it was recorded.
    """
    recorded = scenarios[0]
    if recorded.fits:
        return _saving(scenarios, "" if capacity_bytes is None else _room(recorded, capacity_bytes))
    fitting = [scenario for scenario in scenarios if scenario.fits]
    if capacity_bytes is not None and fitting:
        return _one_that_fits(fitting, capacity_bytes, ran_out)
    return _nothing_fits(capacity_bytes, needed)


def _room(scenario: Scenario, capacity_bytes: int) -> str:
    spare = format_bytes(capacity_bytes - scenario.reserved_peak_bytes)
    return f"The recorded settings fit, with {spare} to spare. "


def _saving(scenarios: Sequence[Scenario], room: str) -> Advice:
    # The recorded cache may stem from earlier work, so settings are compared from a fresh start.
    base = next((s for s in scenarios if s.fresh and s.conf == scenarios[0].conf), scenarios[0])
    best = _least([scenario for scenario in scenarios if scenario.fits])
    saved = base.reserved_peak_bytes - best.reserved_peak_bytes
    if best.conf == base.conf or saved < _worthwhile(base):
        return Advice(
            text=f"{room}No setting helps: none reserves noticeably less than "
            f"{format_bytes(base.reserved_peak_bytes)} for a peak of "
            f"{format_bytes(base.allocated_peak_bytes)} allocated."
        )
    return Advice(
        text=f"{room}Use {_named(best)}: reserves {format_bytes(best.reserved_peak_bytes)} at the "
        f"peak, {format_bytes(saved)} less.",
        conf=best.conf,
    )


def _one_that_fits(fitting: Sequence[Scenario], capacity_bytes: int, ran_out: bool) -> Advice:
    best = _least(fitting)
    spare = format_bytes(capacity_bytes - best.reserved_peak_bytes)
    return Advice(
        text=f"The recorded settings do not fit. Use {_named(best)}: every recorded request is "
        f"served, {format_bytes(best.reserved_peak_bytes)} reserved at the peak, {spare} to spare."
        + (RAN_OUT if ran_out else ""),
        conf=best.conf,
    )


def _nothing_fits(capacity_bytes: int | None, needed: Scenario | None) -> Advice:
    text = "No setting helps: none of them fits."
    if needed is None or capacity_bytes is None:
        return Advice(text=text)
    allocated = needed.allocated_peak_bytes
    if allocated > capacity_bytes:
        short = format_bytes(allocated - capacity_bytes)
        needs = format_bytes(allocated)
        why = f"The allocated tensors alone need {needs}, {short} more than there is"
    else:
        why = f"The allocated tensors need {format_bytes(allocated)}"
    return Advice(
        text=f"{text} {why}; with {_named(needed)} {format_bytes(needed.reserved_peak_bytes)} "
        "would have to be reserved."
    )


def _least(scenarios: Sequence[Scenario]) -> Scenario:
    least = min(scenario.reserved_peak_bytes for scenario in scenarios)
    return next(s for s in scenarios if s.reserved_peak_bytes <= least * (1 + EQUAL_RATIO))


def _worthwhile(base: Scenario) -> float:
    return max(WORTHWHILE_RATIO * base.reserved_peak_bytes, WORTHWHILE_BYTES)


def _named(scenario: Scenario) -> str:
    if scenario.conf:
        return scenario.conf
    return DEFAULTS if scenario.fresh else "the recorded settings"
