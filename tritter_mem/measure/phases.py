"""A run on a device, cut into stretches: each phase, and what lies between, with its own peaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from tritter_mem.devices.cuda import FIGURES, Meter
from tritter_mem.models.user_code import ModuleCase
from tritter_mem.results.run import AllocatorStats, Components, DeviceRun, Estimate, Phase
from tritter_mem.simulation.peaks import WARMUP
from tritter_model.config import RunConfig

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


def estimate_of(stretches: Sequence[Stretch], device: str, run: DeviceRun) -> Estimate:
    """What a measured run comes to, as far as it came; where its bytes are is not known yet.

    The warm-up's peaks do not count, except for what is reserved: that stays. So it is where
    a run is simulated.

    Args:
        stretches: of the whole run, in order.
        device: such as `cuda:0`.
        run: what else was read; its allocator figures are filled in here.
    """
    counted = [stretch for stretch in stretches if stretch.name != WARMUP]
    return Estimate(
        device=device,
        components=Components(),
        phases=tuple(_phases(counted)),
        allocated_peak_bytes=peak(counted, "allocated"),
        reserved_peak_bytes=peak(stretches, "reserved"),
        run=replace(run, allocator=allocator_stats(counted, stretches)),
    )


def _phases(counted: Sequence[Stretch]) -> list[Phase]:
    """One for each name; what was entered several times counts with its largest peaks."""
    names = dict.fromkeys(stretch.name for stretch in counted if stretch.name != BETWEEN)
    return [_phase(name, [s for s in counted if s.name == name]) for name in names]


def _phase(name: str, own: Sequence[Stretch]) -> Phase:
    return Phase(
        name=name,
        allocated_peak_bytes=peak(own, "allocated"),
        reserved_peak_bytes=peak(own, "reserved"),
        seconds=sum(stretch.seconds for stretch in own),
        allocator=allocator_stats(own, own),
    )


def with_components(measured: Estimate, recorded: Estimate) -> Estimate:
    """Say where the measured bytes are.

    Args:
        measured: by the allocator.
        recorded: the same work under the recorder, which saw every tensor.

    Returns:
        The measured estimate with components, of the whole run and of each phase; without them,
        and with the reason, where the two runs do not agree.
    """
    run, other = measured.run, recorded.run
    if run is None or other is None:
        return measured
    own = {phase.name: phase for phase in recorded.phases}
    asked = run.allocator.requested_peak_bytes, other.allocator.requested_peak_bytes
    if asked[0] != asked[1] or {phase.name for phase in measured.phases} != set(own):
        return replace(measured, run=replace(run, components_reason=_disagreement(recorded, asked)))
    same = recorded.allocated_peak_bytes == measured.allocated_peak_bytes
    return replace(
        measured,
        components=_settled(recorded.components, measured.allocated_peak_bytes),
        library_workspace_bytes=recorded.library_workspace_bytes,
        phases=tuple(_with_parts(phase, own[phase.name]) for phase in measured.phases),
        peak_at=recorded.peak_at,
        timeline=recorded.timeline,
        held_at_peak=recorded.held_at_peak if same else (),
    )


def with_fragmentation(measured: Estimate, recorded: Estimate) -> Estimate:
    """Say how memory was fragmented at the reserved peak, where both runs reserved the same.

    Args:
        measured: by the allocator.
        recorded: the same work, with the allocator's history on.

    Returns:
        The measured estimate with it; or with the reason.
    """
    run, other = measured.run, recorded.run
    if run is None or other is None:
        return measured
    reason = other.fragmentation_reason
    if reason is None and recorded.reserved_peak_bytes != measured.reserved_peak_bytes:
        reason = (
            f"the run under the recorder reserved {recorded.reserved_peak_bytes or 0:,} bytes, "
            f"the measured one {measured.reserved_peak_bytes or 0:,}"
        )
    if reason is not None:
        return replace(measured, run=replace(run, fragmentation_reason=reason))
    source = other.fragmentation_source
    return replace(
        measured,
        fragmentation=recorded.fragmentation,
        run=replace(run, fragmentation_source=source),
    )


def _disagreement(recorded: Estimate, asked: tuple[int, int]) -> str:
    return (
        f"the run under the recorder went another way: it asked for {asked[1]:,} bytes at most, in "
        f"{', '.join(phase.name for phase in recorded.phases) or 'no phase'}, the measured one for "
        f"{asked[0]:,}"
    )


def _with_parts(phase: Phase, recorded: Phase) -> Phase:
    if recorded.components is None:
        return phase
    return replace(phase, components=_settled(recorded.components, phase.allocated_peak_bytes))


def _settled(recorded: Components, allocated_bytes: int) -> Components:
    """The parts, so that they sum to what was allocated.

    What is rounded up may differ where one of the two runs gave cached memory back: a block that
    comes from another segment may be left whole.
    """
    asked = recorded.total_bytes - recorded.rounding_bytes
    return replace(recorded, rounding_bytes=allocated_bytes - asked)


STEP = ("forward", "backward", "optimizer")


class Stopwatch:
    """Sums the seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start


def phase_tokens(run: RunConfig) -> dict[str, int]:
    """Tokens of all sequences that go through each phase; phases that take none are left out.

    The prompt's last token makes the first new token, so decode makes one less than all.
    """
    if run.mode == "training":
        return dict.fromkeys(("forward", "backward"), run.batch * run.context)
    prompt, decoded = run.context - run.new_tokens, run.new_tokens - 1
    return {"prefill": run.batch * prompt, "decode": run.batch * decoded}


def with_speed(
    estimate: Estimate, seconds: Mapping[str, float], work: RunConfig | ModuleCase
) -> Estimate:
    """Fill in the seconds of a run's phases and, of the bundled model, its tokens per second.

    Phases that a run did not come to have neither.
    """
    tokens = phase_tokens(work) if isinstance(work, RunConfig) else {}
    return replace(
        estimate,
        phases=tuple(
            _timed(phase, seconds[phase.name], tokens.get(phase.name)) for phase in estimate.phases
        ),
        tokens_per_second=_overall(seconds, work) if isinstance(work, RunConfig) else None,
    )


def _timed(phase: Phase, seconds: float, tokens: int | None) -> Phase:
    return replace(phase, seconds=seconds, tokens_per_second=tokens / seconds if tokens else None)


def _overall(seconds: Mapping[str, float], run: RunConfig) -> float | None:
    """What decode generates in a second, or what a whole step trains on."""
    needed = STEP if run.mode == "training" else ("decode",)
    if not set(needed) <= set(seconds):
        return None
    if run.mode == "training":
        return run.batch * run.context / sum(seconds[name] for name in STEP)
    decoded = phase_tokens(run)["decode"]
    return decoded / seconds["decode"] if decoded else None
