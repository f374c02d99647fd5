"""Timing on a CUDA device: medians of many runs, over inputs that no cache still holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

REPEATS, WARM_UP = 25, 3
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
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, -(-BEYOND_CACHE * cache // nbytes))


def time_graph(launches: Sequence[Launch]) -> Timing:
    """Time launches that do the same on different inputs, one after the other.

    They are captured in one CUDA graph, whose replays leave out what the host does between them.
    """
    graph = _captured(launches)
    return _timing([_elapsed_us(graph.replay) / len(launches) for _ in range(REPEATS + WARM_UP)])


def time_calls(launch: Launch) -> Timing:
    """Time something that a graph cannot hold, such as a backward pass; the host takes part."""
    return _timing([_elapsed_us(launch) for _ in range(REPEATS + WARM_UP)])


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


def _elapsed_us(launch: Launch) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    launch()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000


def _timing(runs: list[float]) -> Timing:
    counted = runs[WARM_UP:]
    tenths = statistics.quantiles(counted, n=10)
    return Timing(*(round(us, 3) for us in (statistics.median(counted), tenths[0], tenths[-1])))


def copy_bytes_per_second() -> float:
    """What a large copy on the device moves: bytes read and bytes written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_(0, 256)
    target = torch.empty_like(source)
    timing = time_graph([lambda: target.copy_(source)] * 4)
    return 2 * source.nbytes / (timing.median_us * 1e-6)
