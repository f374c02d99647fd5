"""Peaks, components and the timeline of an event log: pure arithmetic over its rows.

A log of n events has n + 1 levels: level 0 is before the first event, level i after i events.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice

from tritter_mem.results.run import (
    COMPONENTS,
    IN_WARM_UP,
    OUTSIDE_PHASES,
    Components,
    Holding,
    Phase,
    Timeline,
)
from tritter_mem.results.thinning import thinned
from tritter_mem.simulation.events import EventLog, Span

WARMUP = "warmup"
"""The phase whose peak does not count: a run warms up before it is measured."""
TIMELINE_POINTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What a log comes to.

    Attributes:
        allocated_peak_bytes: the largest sum of live storages outside of the warm-up.
        components: what was live at that peak; they sum to it.
        peak_at: phase, module and operator that made the peak; empty for an empty log.
        peak_level: the level of the peak.
        held: what was live at it, by module and component.
        phases: each phase but the warm-up, in order of first appearance, with its own peak and
            what was live at it. A phase that was entered several times counts once, with its
            largest peak.
        timeline: after `event` events, the number of the phase in `phases` (or that it is none),
            and live bytes, of all and of each category that occurs; thinned to `TIMELINE_POINTS`,
            with every phase's peak kept.
    """

    allocated_peak_bytes: int
    components: Components
    peak_at: str
    peak_level: int
    held: tuple[Holding, ...]
    phases: tuple[Phase, ...]
    timeline: Timeline


def find_peaks(
    log: EventLog, points: int = TIMELINE_POINTS, requested: EventLog | None = None
) -> Peaks:
    """Compute the peaks and the timeline of a log.

    Args:
        log: the events.
        points: how many points the timeline may have.
        requested: the same events with the bytes that were asked for, where those of `log` are of
            allocated blocks; the difference is the component `rounding`.
    """
    levels = live_bytes(log)
    phase_peaks = _phase_peaks(log.spans, levels)
    peak = max(_counted_levels(log.spans, len(levels)), key=levels.__getitem__)
    extremes = [partial(pick, key=levels.__getitem__) for pick in (min, max)]
    bounds = [level for span in log.spans for level in (span.start, span.end)]
    thin = thinned(range(len(levels)), points - len(phase_peaks) - 1, extremes, bounds)
    kept = sorted({*thin, *phase_peaks.values(), peak})
    live = dict(zip(kept, _components_at(log, requested or log, kept), strict=True))
    return Peaks(
        allocated_peak_bytes=levels[peak],
        components=live[peak],
        peak_at=_describe(log, peak),
        peak_level=peak,
        held=held_at(log, peak),
        phases=tuple(
            Phase(name=name, allocated_peak_bytes=levels[at], components=live[at])
            for name, at in phase_peaks.items()
        ),
        timeline=_timeline(live, _phase_numbers(kept, log.spans, list(phase_peaks))),
    )


def held_at(log: EventLog, level: int) -> tuple[Holding, ...]:
    """What was live at a level, by module and component, most first.

    Where the log's bytes are those of blocks, each has what its own blocks round up; there is no
    component `rounding`.
    """
    live: dict[int, int] = {}
    for storage, came, nbytes in log.requests(0, level):
        if came:
            live[storage] = nbytes
        else:
            del live[storage]
    sums = Counter[tuple[str, str]]()
    for storage, nbytes in live.items():
        sums[log.module(storage), log.category(storage)] += nbytes
    return tuple(
        Holding(module=module, component=component, allocated_bytes=nbytes)
        for (module, component), nbytes in sorted(sums.items(), key=lambda item: (-item[1], item))
    )


def live_bytes(log: EventLog) -> list[int]:
    """Bytes of all live storages at each level of a log."""
    return list(accumulate((change for _, change in log.changes()), initial=0))


def _phase_peaks(spans: Iterable[Span], levels: list[int]) -> dict[str, int]:
    """The level of each phase's first peak. A phase begins with what was live before it."""
    peaks: dict[str, int] = {}
    for span in spans:
        if span.name != WARMUP:
            at = max(range(span.start, span.end + 1), key=levels.__getitem__)
            if span.name not in peaks or levels[at] > levels[peaks[span.name]]:
                peaks[span.name] = at
    return peaks


def _counted_levels(spans: Iterable[Span], count: int) -> Iterator[int]:
    """Every level but those inside a warm-up; the one at its end counts: the run starts there."""
    start = 0
    for span in spans:
        if span.name == WARMUP:
            yield from range(start, span.start + 1)
            start = span.end
    yield from range(start, count)


def _describe(log: EventLog, level: int) -> str:
    """The event that led to a level, in words: `prefill: Transformer.layers.0.out (aten.mm)`."""
    if level == 0:
        return ""
    event = next(islice(log, level - 1, None))
    place = ": ".join(filter(None, (event.phase, event.module)))
    return f"{place} ({event.operator})".strip()


def _components_at(log: EventLog, requested: EventLog, levels: list[int]) -> Iterator[Components]:
    """What was live at each of `levels`, which ascend."""
    live = [0] * len(COMPONENTS)
    rounding = COMPONENTS.index("rounding")
    changes = zip(log.changes(), requested.changes(), strict=True)
    done = 0
    for level in levels:
        for (_, block), (category, asked) in islice(changes, level - done):
            live[category] += asked
            live[rounding] += block - asked
        done = level
        yield Components(**dict(zip((f"{name}_bytes" for name in COMPONENTS), live, strict=True)))


def _phase_numbers(levels: list[int], spans: list[Span], names: list[str]) -> list[int]:
    """For each level the number of the phase whose event led to it."""
    numbers = {name: number for number, name in enumerate(names)} | {WARMUP: IN_WARM_UP}
    found = []
    for level in levels:
        at = bisect_left(spans, level, key=lambda span: span.start) - 1
        inside = at >= 0 and level <= spans[at].end
        found.append(numbers.get(spans[at].name, OUTSIDE_PHASES) if inside else OUTSIDE_PHASES)
    return found


def _timeline(live: dict[int, Components], phases: list[int]) -> Timeline:
    used = [name for name in COMPONENTS if any(c.items()[name] for c in live.values())]
    rows = (
        (level, phase, parts.total_bytes, *(parts.items()[name] for name in used))
        for (level, parts), phase in zip(live.items(), phases, strict=True)
    )
    return Timeline(
        columns=("event", "phase", "allocated_bytes", *(f"{name}_bytes" for name in used)),
        rows=tuple(rows),
    )
