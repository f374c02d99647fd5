"""A run on a device, cut into stretches: each phase, and what lies between, with its own peaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from tritter_mem.measure.meter import FIGURES, Meter
from tritter_mem.results import AllocatorStats
from tritter_mem.trace.peaks import WARMUP

if TYPE_CHECKING:
    from torch import Tensor

BETWEEN = ""
"""The name of what lies between phases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What the allocator did from one point of a run to the next.

    Attributes:
        name: of the phase; empty between phases.
        stats: `meter.FIGURES`; the last three are what came in this stretch.
    """

    name: str
    seconds: float
    stats: Mapping[str, int]


class Stretches:
    """A watch that reads a device's allocator around each phase.

    Args:
        meter: the device.
        warmed_up: called when the warm-up is over.

    Attributes:
        found: the stretches so far.
        failed_in: the phase that an error came out of.
    """

    def __init__(self, meter: Meter, warmed_up: Callable[[], None] = lambda: None) -> None:
        self.found: list[Stretch] = []
        self.failed_in = BETWEEN
        self._meter, self._warmed_up = meter, warmed_up
        self._counts = _counts(meter.stats())
        self._begin()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Read what runs inside as one stretch."""
        self.close(BETWEEN)
        try:
            yield
        except BaseException:
            self.failed_in = name
            raise
        finally:
            self.close(name)
        if name == WARMUP:
            self._warmed_up()
            self._begin()

    def adopt(self, tensor: Tensor, category: str) -> None:
        """Nothing: what tensors are for is another run's."""

    def close(self, name: str) -> None:
        """End the stretch that runs, and begin another."""
        self._meter.synchronize()
        seconds = perf_counter() - self._since
        stats = self._meter.stats()
        before, self._counts = self._counts, _counts(stats)
        came = {key: self._counts[key] - before[key] for key in before}
        self.found.append(
            Stretch(
                name=name,
                seconds=seconds,
                stats={key: int(stats[key]) for key in FIGURES} | came,
            )
        )
        self._begin()

    def _begin(self) -> None:
        self._meter.reset_peaks()
        self._since = perf_counter()


def _counts(stats: Mapping[str, int]) -> dict[str, int]:
    return {key: int(stats[key]) for key in FIGURES if key.startswith("num_")}


def peak(stretches: Sequence[Stretch], figure: str) -> int:
    """The largest of a figure's peaks: `allocated` for `allocated_bytes.all.peak`."""
    return max((stretch.stats[f"{figure}_bytes.all.peak"] for stretch in stretches), default=0)


def allocator_stats(peaks: Sequence[Stretch], counts: Sequence[Stretch]) -> AllocatorStats:
    """What the allocator counted.

    Args:
        peaks: stretches whose peaks count.
        counts: stretches whose calls count.
    """

    def total(figure: str) -> int:
        return sum(stretch.stats[figure] for stretch in counts)

    return AllocatorStats(
        requested_peak_bytes=peak(peaks, "requested"),
        active_peak_bytes=peak(peaks, "active"),
        inactive_split_peak_bytes=peak(peaks, "inactive_split"),
        retries=total("num_alloc_retries"),
        segment_allocations=total("num_device_alloc"),
        segment_releases=total("num_device_free"),
    )
