"""Stretches of a run on a device, put together as the answer `measured`: pure arithmetic.

PyTorch's allocator knows how much is allocated, not for what, and the peak of each figure, not the
state at a peak. Both are told by a run of its own under the recorder, which sees every tensor's
storage, with the allocator's history on. That counts where it asked for as much as the measured
run did, to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tritter_mem.measure.stretches import BETWEEN, Stretch, allocator_stats, peak
from tritter_mem.results import Components, DeviceRun, Estimate, Phase
from tritter_mem.trace.peaks import WARMUP


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
