"""Timing on a CUDA device: medians of many runs, over inputs that no cache still holds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice

import torch

from benchmarks.card import device, here

MOST_RUNS, FEWEST_RUNS, MOST_SECONDS = 25, 5, 0.5
"""Runs that are timed: as many as take so long, within these bounds."""
WARM_SECONDS = 0.05
"""An idle card clocks down; so much work brings it up."""
FEWEST_LAUNCHES, LONG_US = 16, 1000.0
"""Launches of a graph, as a replay's own start is a part of what is timed; long ones need not."""
BEYOND_CACHE = 4
"""Inputs are rotated until together they are so many times the L2 cache."""

Launch = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Microseconds of one launch: the median run, and the runs at one and at nine tenths."""

    median_us: float
    low_us: float
    high_us: float


def rotation(nbytes: int) -> int:
    """How many inputs of this size are beyond the cache together."""
    return max(2, -(-BEYOND_CACHE * here().l2_cache_bytes // nbytes))


def time_graph(launches: Sequence[Launch]) -> Timing:
    """Time launches that do the same on different inputs, one after the other.

    They are captured in one CUDA graph, whose replays leave out what the host does between them.
    Where nothing can be timed, each kind is launched once and the times are no numbers.
    """
    if device().type != "cuda":
        return _untimed(launches[0])
    launches[0]()  # compiles
    count = len(launches)
    if _elapsed_us(launches[0]) < LONG_US:
        count = max(count, FEWEST_LAUNCHES)
    captured = list(islice(cycle(launches), count))
    replay = _captured(captured).replay
    return _timing([us / len(captured) for us in _runs(replay)])


def time_calls(launch: Launch) -> Timing:
    """Time something that a graph cannot hold, such as a backward pass; the host takes part."""
    return _untimed(launch) if device().type != "cuda" else _timing(_runs(launch))


def _untimed(launch: Launch) -> Timing:
    launch()
    return Timing(math.nan, math.nan, math.nan)


def _captured(launches: Sequence[Launch]) -> torch.cuda.CUDAGraph:
    """A graph of the launches, once the first has run on the side, and is compiled."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launches[0]()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    return graph


def _runs(launch: Launch) -> list[float]:
    """Microseconds of each run, once the card is warm."""
    warm(launch, torch.cuda.synchronize)
    return list(_as_many_as_fit(lambda: _elapsed_us(launch)))


def warm(launch: Launch, wait: Launch, clock: Callable[[], float] = time.perf_counter) -> None:
    """Launch, and wait for it, until so much time has gone by; once at least."""
    end = clock() + WARM_SECONDS
    while True:
        launch()
        wait()
        if clock() >= end:
            return


def _as_many_as_fit(run: Callable[[], float]) -> Iterator[float]:
    total_us = 0.0
    for number in range(MOST_RUNS):
        if number >= FEWEST_RUNS and total_us > MOST_SECONDS * 1e6:
            return
        total_us += (us := run())
        yield us


def _elapsed_us(launch: Launch) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    launch()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000


def _timing(runs: list[float]) -> Timing:
    tenths = statistics.quantiles(runs, n=10)
    return Timing(*(round(us, 3) for us in (statistics.median(runs), tenths[0], tenths[-1])))


@cache
def copy_bytes_per_second() -> float:
    """What a kernel moves that reads and writes much: bytes read and bytes written.

    `copy_` would not do: a CUDA graph turns it into a memcpy node, a third slower on an H200.
    """
    size = 1 << 28 if device().type == "cuda" else 1
    source = torch.randint(-(1 << 31), 1 << 31, (size,), dtype=torch.int32, device=device())
    target = torch.empty_like(source)
    timing = time_graph([lambda: torch.bitwise_not(source, out=target)])
    return 2 * source.nbytes / (timing.median_us * 1e-6)


def share(nbytes: int, timing: Timing) -> float:
    """Of the copy's rate, with these bytes in this time."""
    return ratio(nbytes / copy_bytes_per_second() * 1e6, timing)


def ratio(other_us: float, ours: Timing) -> float:
    """How many times faster we are."""
    return round(other_us / ours.median_us, 3) if ours.median_us else math.inf


def target(what: str, wanted: float, got: float | None) -> dict[str, object]:
    """One ratio to reach; what did not fit the card was not reached."""
    reached = got is not None and got >= wanted
    return {"what": what, "wanted": wanted, "got": got, "reached": reached}
