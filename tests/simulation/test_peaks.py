"""Peaks agree with a plain replay of the events, whatever the events are."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from tritter_mem.results.run import COMPONENTS
from tritter_mem.simulation.events import EventLog, Span
from tritter_mem.simulation.peaks import WARMUP, Peaks, find_peaks

CATEGORIES = [name for name in COMPONENTS if name != "rounding"]
"""What an event may be of; rounding is of no event."""


@st.composite
def logs(draw: st.DrawFn) -> EventLog:
    """Allocations and frees in any valid order, in phases that may repeat, abut or be empty."""
    log, live = EventLog(), []
    for _ in range(draw(st.integers(0, 60))):
        if live and draw(st.booleans()):
            log.free(live.pop(draw(st.integers(0, len(live) - 1))), module="")
        else:
            category = draw(st.sampled_from(CATEGORIES))
            size = draw(st.integers(1, 1 << 40))
            live.append(log.alloc(size, operator="op", module="", category=category))
    cuts = sorted(draw(st.lists(st.integers(0, len(log)), max_size=8)))
    names = st.sampled_from(["load", "forward", "backward", WARMUP])
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    log.spans = [Span(draw(names), start, end) for start, end in pairs]
    return log


def levels(log: EventLog) -> list[dict[str, int]]:
    """Live bytes by category before the first event and after each one, the slow plain way."""
    live: dict[int, tuple[str, int]] = {}
    states = [dict.fromkeys(COMPONENTS, 0)]
    for event in log:
        if event.kind == "alloc":
            live[event.storage] = (event.category, event.bytes)
        else:
            del live[event.storage]
        state = dict.fromkeys(COMPONENTS, 0)
        for category, size in live.values():
            state[category] += size
        states.append(state)
    return states


def totals(log: EventLog) -> list[int]:
    return [sum(state.values()) for state in levels(log)]


def row_totals(peaks: Peaks) -> list[float]:
    return [row[2] for row in peaks.timeline.rows]


@given(logs())
def test_peak_is_the_largest_level_outside_of_the_warm_up(log: EventLog) -> None:
    inside = {
        level
        for span in log.spans
        if span.name == WARMUP
        for level in range(span.start + 1, span.end)
    }
    expected = max(total for level, total in enumerate(totals(log)) if level not in inside)
    assert find_peaks(log).allocated_peak_bytes == expected


@given(logs())
def test_components_sum_to_their_peak_and_are_one_state_of_the_run(log: EventLog) -> None:
    peaks = find_peaks(log)
    assert peaks.components.total_bytes == peaks.allocated_peak_bytes
    assert peaks.components.items() in levels(log)
    for phase in peaks.phases:
        assert phase.components is not None
        assert phase.components.total_bytes == phase.allocated_peak_bytes


@given(logs())
def test_phase_peak_is_its_largest_level_from_what_was_live_at_its_start(log: EventLog) -> None:
    peaks, at = find_peaks(log), totals(log)
    names = list(dict.fromkeys(span.name for span in log.spans if span.name != WARMUP))
    assert [phase.name for phase in peaks.phases] == names
    for phase in peaks.phases:
        spans = [span for span in log.spans if span.name == phase.name]
        assert phase.allocated_peak_bytes == max(max(at[s.start : s.end + 1]) for s in spans)


@given(logs(), st.integers(8, 40))
def test_timeline_is_thinned_true_and_keeps_every_peak(log: EventLog, points: int) -> None:
    peaks, states = find_peaks(log, points), levels(log)
    timeline = peaks.timeline
    assert len(timeline.rows) <= points
    assert [row[0] for row in timeline.rows] == sorted({row[0] for row in timeline.rows})
    assert timeline.columns[:3] == ("event", "phase", "allocated_bytes")
    for event, _, allocated, *parts in timeline.rows:
        state = states[int(event)]
        named = dict(zip(timeline.columns[3:], parts, strict=True))
        assert named == {f"{k}_bytes": v for k, v in state.items() if f"{k}_bytes" in named}
        assert allocated == sum(parts) == sum(state.values())
    assert peaks.allocated_peak_bytes in row_totals(peaks)
    assert {phase.allocated_peak_bytes for phase in peaks.phases} <= set(row_totals(peaks))


@given(logs())
def test_timeline_numbers_the_phase_that_each_event_was_in(log: EventLog) -> None:
    peaks, events = find_peaks(log), list(log)
    names = [phase.name for phase in peaks.phases]
    for event, number, *_ in peaks.timeline.rows:
        phase = events[int(event) - 1].phase if event else ""
        assert (names[int(number)] if number >= 0 else "") == (phase if phase in names else "")


def test_peak_says_where_it_was() -> None:
    log = EventLog()
    log.alloc(1, operator="aten.empty", module="", category="weights")
    log.alloc(2, operator="aten.mm", module="Model.mlp", category="activations")
    log.spans = [Span("forward", 1, 2)]
    assert find_peaks(log).peak_at == "forward: Model.mlp (aten.mm)"


def test_peak_outside_of_phases_and_modules_names_its_operator() -> None:
    log = EventLog()
    log.alloc(1, operator="aten.empty", module="", category="weights")
    assert find_peaks(log).peak_at == "(aten.empty)"


def test_long_log_keeps_its_spikes() -> None:
    """One short spike among 40,000 even events must not be thinned away."""
    log = EventLog()
    for number in range(20_000):
        size = 10_000 if number == 12_345 else 1
        log.free(log.alloc(size, operator="", module="", category="logits"), module="")
    peaks = find_peaks(log)
    assert len(peaks.timeline.rows) <= 2000
    assert max(row_totals(peaks)) == peaks.allocated_peak_bytes == 10_000


def test_empty_log_has_a_peak_of_zero() -> None:
    peaks = find_peaks(EventLog())
    assert (peaks.allocated_peak_bytes, peaks.phases) == (0, ())
    assert peaks.timeline.rows == ((0, -1, 0),)


@given(logs(), st.integers(1, 512))
def test_rounding_is_what_blocks_have_beyond_what_was_asked_for(log: EventLog, more: int) -> None:
    blocks = array("q", (event.bytes + more for event in log if event.kind == "alloc"))
    asked, rounded = find_peaks(log), find_peaks(log.with_storage_bytes(blocks), requested=log)
    parts = rounded.components
    assert parts.total_bytes == rounded.allocated_peak_bytes
    assert parts.rounding_bytes % more == 0
    assert asked.components.rounding_bytes == 0
    live = {**parts.items(), "rounding": 0}
    assert live in levels(log)
