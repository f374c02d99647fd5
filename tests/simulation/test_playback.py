"""A run played through the allocator: its segments at the peak, and whether a limit matters."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.planner.cases import tiny
from tritter_mem.allocator.settings import AllocatorSettings, parse_alloc_conf
from tritter_mem.results.run import MemoryUse
from tritter_mem.simulation.events import EventLog, Span
from tritter_mem.simulation.peaks import find_peaks
from tritter_mem.simulation.playback import (
    Limit,
    find_out_of_memory,
    play,
    segments_at,
    surely_fits,
)
from tritter_mem.simulation.simulate import simulate
from tritter_mem.units import MiB

CONFS = (
    "", "expandable_segments:True", "max_split_size_mb:32", "roundup_power2_divisions:4",
    "garbage_collection_threshold:0.6", "per_process_memory_fraction:0.7",
)  # fmt: skip


@st.composite
def logs(draw: st.DrawFn) -> EventLog:
    """Requests of both pools that come and go in any order."""
    log, live = EventLog(), []
    sizes = st.one_of(st.integers(1, 2 * MiB), st.integers(1, 60 * MiB))
    for _ in range(draw(st.integers(1, 40))):
        if live and draw(st.booleans()):
            log.free(live.pop(draw(st.integers(0, len(live) - 1))), module="")
        else:
            category = draw(st.sampled_from(["weights", "activations"]))
            module = draw(st.sampled_from(["", "Model.a", "Model.b"]))
            live.append(log.alloc(draw(sizes), operator="", module=module, category=category))
        if draw(st.integers(0, 9)) == 0:
            log.empty_cache()
    return log


settings = st.sampled_from(CONFS).map(parse_alloc_conf)


@given(logs(), settings, st.data())
def test_segments_hold_what_is_live_and_sum_to_what_is_reserved(
    log: EventLog, settings: AllocatorSettings, data: st.DataObject
) -> None:
    level = data.draw(st.integers(0, len(log)))
    played = play(log, settings)
    segments = segments_at(log, settings, level)
    reserved = [after for event, after in played.reserved if event <= level][-1]
    assert sum(segment.size_bytes for segment in segments) == reserved
    found = Counter[str]()
    for segment in segments:
        assert sum(block.size_bytes for block in segment.blocks) == segment.size_bytes
        for block in segment.blocks:
            found[block.component] += block.size_bytes
    del found[""]
    wanted = Counter[str]()
    for event in list(played.log)[:level]:
        wanted[event.category] += event.bytes if event.kind == "alloc" else -event.bytes
    assert found == +wanted


@given(logs(), settings)
def test_what_is_held_at_the_peak_sums_to_it_most_first(
    log: EventLog, settings: AllocatorSettings
) -> None:
    peaks = find_peaks(play(log, settings).log)
    sizes = [holding.allocated_bytes for holding in peaks.held]
    assert sum(sizes) == peaks.allocated_peak_bytes
    assert sizes == sorted(sizes, reverse=True)
    assert all(sizes)
    places = [(holding.module, holding.component) for holding in peaks.held]
    assert len(set(places)) == len(places)


@given(logs(), settings, st.integers(0, 40 * MiB), st.integers(0, 4 * MiB))
def test_what_surely_fits_runs_out_of_memory_nowhere(
    log: EventLog, settings: AllocatorSettings, margin: int, context: int
) -> None:
    """So the run with a limit may be left out."""
    played = play(log, settings)
    reserved = played.reserved_peak_bytes[""]
    capacity = int((reserved + margin) / settings.per_process_memory_fraction) + context
    assume(surely_fits(played, settings, Limit(capacity, context)))
    assert find_out_of_memory(log, settings, Limit(capacity, context)) is None


def test_an_emptied_cache_is_reserved_no_longer() -> None:
    log = EventLog()
    passing = log.alloc(30 * MiB, operator="", module="", category="activations")
    log.alloc(40 * MiB, operator="", module="", category="weights")
    log.free(passing, module="")
    log.empty_cache()
    log.alloc(25 * MiB, operator="", module="", category="activations")
    log.spans = [Span("load", 0, 3), Span("prefill", 3, 4)]
    played = play(log, parse_alloc_conf(""))
    assert [reserved // MiB for _, reserved in played.reserved] == [0, 30, 70, 40, 66]
    assert played.reserved_peak_bytes == {"": 70 * MiB, "load": 70 * MiB, "prefill": 66 * MiB}
    assert sum(part.size_bytes for part in segments_at(log, parse_alloc_conf(""), 3)) == 40 * MiB


@pytest.mark.parametrize(
    ("conf", "capacity", "fits"),
    [
        ("", 22 * MiB, True),
        ("", 22 * MiB - 1, False),
        ("per_process_memory_fraction:0.5", 43 * MiB, True),
        ("per_process_memory_fraction:0.5", 39 * MiB, False),
        ("garbage_collection_threshold:0.8", 1 << 40, False),
    ],
)
def test_whether_it_fits_goes_by_what_is_reserved(conf: str, capacity: int, fits: bool) -> None:
    """20 MiB in a segment, beside 2 MiB of context; garbage collection has to be played."""
    log = EventLog()
    log.alloc(20 * MiB, operator="", module="", category="weights")
    settings = parse_alloc_conf(conf)
    assert surely_fits(play(log, settings), settings, Limit(capacity, 2 * MiB)) is fits


@pytest.fixture(scope="module", params=["inference", "training"])
def use(request: pytest.FixtureRequest) -> MemoryUse:
    return simulate(tiny(workload__mode=request.param))


def test_the_segments_of_a_simulation_are_those_at_its_allocated_peak(use: MemoryUse) -> None:
    blocks = [block for segment in use.segments for block in segment.blocks]
    live = [block for block in blocks if block.component]
    assert sum(block.size_bytes for block in live) == use.allocated_peak_bytes
    parts = use.components.items()
    assert {block.component for block in live} == {
        name for name, size in parts.items() if size and name != "rounding"
    }
    by_component = Counter[str]()
    for block in live:
        by_component[block.component] += block.size_bytes
    rounded_up = {name: size - parts[name] for name, size in by_component.items()}
    assert min(rounded_up.values()) >= 0
    assert sum(rounded_up.values()) == parts["rounding"]


def test_holdings_and_segments_of_a_simulation_agree(use: MemoryUse) -> None:
    held, blocks = Counter[str](), Counter[str]()
    for holding in use.held_at_peak:
        held[holding.component] += holding.allocated_bytes
    for segment in use.segments:
        for block in segment.blocks:
            blocks[block.component] += block.size_bytes
    del blocks[""]
    assert held == blocks
