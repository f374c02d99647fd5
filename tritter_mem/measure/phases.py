"""The phases of a run: what a device's allocator did in each, its seconds and its speed.

What lies between phases is read like a phase, under an empty name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from tritter_mem.devices.device import STATISTICS, Device
from tritter_mem.models.user_code import ModuleCase
from tritter_mem.results.run import AllocatorStats, Components, DeviceRun, MemoryUse, Phase
from tritter_mem.simulation.peaks import WARMUP
from tritter_model.config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor

BETWEEN = ""
"""The name of what lies between phases."""
_STEP = ("forward", "backward", "optimizer")


class Stopwatch:
    """A watch that sums the seconds of each phase, and asks nothing of memory."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def adopt(self, tensor: Tensor, category: str) -> None:
        """Nothing: what tensors are for is another run's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReading:
    """What the allocator did in a phase, or between two.

    Attributes:
        name: of the phase; empty between phases.
        stats: `device.STATISTICS`; the last three are the calls of this phase.
    """

    name: str
    seconds: float
    stats: Mapping[str, int]


class PhaseMeter:
    """A watch that reads a device's allocator around each phase.

    Args:
        device: where the run is.
        after_warmup: called when the warm-up is over.

    Attributes:
        readings: the phases so far, in order.
        failed_in: the phase that an error came out of.
    """

    def __init__(self, device: Device, after_warmup: Callable[[], None] = lambda: None) -> None:
        self.readings: list[PhaseReading] = []
        self.failed_in = BETWEEN
        self._device, self._after_warmup = device, after_warmup
        self._counts = _counts(device.stats())
        self._begin()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Read what runs inside as one phase."""
        self.end(BETWEEN)
        try:
            yield
        except BaseException:
            self.failed_in = name
            raise
        finally:
            self.end(name)
        if name == WARMUP:
            self._after_warmup()
            self._begin()

    def adopt(self, tensor: Tensor, category: str) -> None:
        """Nothing: what tensors are for is another run's."""

    def end(self, name: str) -> None:
        """End the phase that runs, or what lies between two, and begin the next."""
        self._device.synchronize()
        seconds = perf_counter() - self._since
        stats = self._device.stats()
        before, self._counts = self._counts, _counts(stats)
        came = {key: self._counts[key] - before[key] for key in before}
        self.readings.append(
            PhaseReading(
                name=name,
                seconds=seconds,
                stats={key: int(stats[key]) for key in STATISTICS} | came,
            )
        )
        self._begin()

    def _begin(self) -> None:
        self._device.reset_peaks()
        self._since = perf_counter()


def _counts(stats: Mapping[str, int]) -> dict[str, int]:
    return {key: int(stats[key]) for key in STATISTICS if key.startswith("num_")}


def peak(readings: Sequence[PhaseReading], figure: str) -> int:
    """The largest of a figure's peaks: `allocated` for `allocated_bytes.all.peak`."""
    return max((reading.stats[f"{figure}_bytes.all.peak"] for reading in readings), default=0)


def allocator_stats(
    peaks: Sequence[PhaseReading], counts: Sequence[PhaseReading]
) -> AllocatorStats:
    """What the allocator counted.

    Args:
        peaks: phases whose peaks count.
        counts: phases whose calls count.
    """

    def total(figure: str) -> int:
        return sum(reading.stats[figure] for reading in counts)

    return AllocatorStats(
        requested_peak_bytes=peak(peaks, "requested"),
        active_peak_bytes=peak(peaks, "active"),
        inactive_split_peak_bytes=peak(peaks, "inactive_split"),
        retries=total("num_alloc_retries"),
        segment_allocations=total("num_device_alloc"),
        segment_releases=total("num_device_free"),
    )


def memory_use_of(readings: Sequence[PhaseReading], device: str, run: DeviceRun) -> MemoryUse:
    """What a measured run comes to, as far as it came; where its bytes are is not known yet.

    The warm-up's peaks do not count, except for what is reserved: that stays. So it is where
    a run is simulated.

    Args:
        readings: of the whole run, in order.
        device: such as `cuda:0`.
        run: what else was read; its allocator figures are filled in here.
    """
    counted = [reading for reading in readings if reading.name != WARMUP]
    return MemoryUse(
        device=device,
        components=Components(),
        phases=tuple(_phases(counted)),
        allocated_peak_bytes=peak(counted, "allocated"),
        reserved_peak_bytes=peak(readings, "reserved"),
        run=replace(run, allocator=allocator_stats(counted, readings)),
    )


def _phases(counted: Sequence[PhaseReading]) -> list[Phase]:
    """One for each name; what was entered several times counts with its largest peaks."""
    names = dict.fromkeys(reading.name for reading in counted if reading.name != BETWEEN)
    return [_phase(name, [s for s in counted if s.name == name]) for name in names]


def _phase(name: str, own: Sequence[PhaseReading]) -> Phase:
    return Phase(
        name=name,
        allocated_peak_bytes=peak(own, "allocated"),
        reserved_peak_bytes=peak(own, "reserved"),
        seconds=sum(reading.seconds for reading in own),
        allocator=allocator_stats(own, own),
    )


def phase_tokens(run: RunConfig) -> dict[str, int]:
    """Tokens of all sequences that go through each phase; phases that take none are left out.

    The prompt's last token makes the first new token, so decode makes one less than all.
    """
    if run.mode == "training":
        return dict.fromkeys(("forward", "backward"), run.batch * run.context)
    prompt, decoded = run.context - run.new_tokens, run.new_tokens - 1
    return {"prefill": run.batch * prompt, "decode": run.batch * decoded}


def with_speed(
    use: MemoryUse, seconds: Mapping[str, float], work: RunConfig | ModuleCase
) -> MemoryUse:
    """Fill in the seconds of a run's phases and, of the bundled model, its tokens per second.

    Phases that a run did not come to have neither.
    """
    tokens = phase_tokens(work) if isinstance(work, RunConfig) else {}
    return replace(
        use,
        phases=tuple(
            _timed(phase, seconds[phase.name], tokens.get(phase.name)) for phase in use.phases
        ),
        tokens_per_second=_overall(seconds, work) if isinstance(work, RunConfig) else None,
    )


def _timed(phase: Phase, seconds: float, tokens: int | None) -> Phase:
    return replace(phase, seconds=seconds, tokens_per_second=tokens / seconds if tokens else None)


def _overall(seconds: Mapping[str, float], run: RunConfig) -> float | None:
    """What decode generates in a second, or what a whole step trains on."""
    needed = _STEP if run.mode == "training" else ("decode",)
    if not set(needed) <= set(seconds):
        return None
    if run.mode == "training":
        return run.batch * run.context / sum(seconds[name] for name in _STEP)
    decoded = phase_tokens(run)["decode"]
    return decoded / seconds["decode"] if decoded else None
