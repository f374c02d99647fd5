"""Stretches of a run on a device, put together as the answer `measured`: pure arithmetic.

PyTorch's allocator knows how much is allocated, not for what. Where the bytes are is told by a run
of its own under the recorder, which sees every tensor's storage. What the measured run asked for
beyond that is what libraries and operators allocate inside: workspace. What it allocated beyond
what it asked for is rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tritter_mem.measure.stretches import BETWEEN, Stretch, allocator_stats, peak
from tritter_mem.results import Components, DeviceRun, Estimate, Fragmentation, Phase
from tritter_mem.trace.peaks import WARMUP


def estimate_of(stretches: Sequence[Stretch], device: str, run: DeviceRun) -> Estimate:
    """What a measured run comes to, as far as it came; components are not known yet.

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
        fragmentation=_fragmentation(stretches),
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


def _fragmentation(stretches: Sequence[Stretch]) -> Fragmentation | None:
    """As `Fragmentation` says for a run on a GPU; None where nothing was reserved in a phase."""
    phases = [stretch for stretch in stretches if stretch.name != BETWEEN]
    reserved = peak(phases, "reserved")
    if not reserved:
        return None
    at_peak = [s for s in phases if s.stats["reserved_bytes.all.peak"] == reserved]
    unused = reserved - peak(at_peak, "allocated")
    fullest = max(at_peak, key=lambda s: s.stats["allocated_bytes.all.peak"])
    return Fragmentation(
        reserved_not_allocated_bytes=unused,
        ratio=unused / reserved,
        largest_free_block_bytes=fullest.largest_free_block_bytes,
        inactive_split_bytes=fullest.stats["inactive_split_bytes.all.current"],
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
    run = measured.run
    if run is None:
        return measured
    own = {phase.name: phase for phase in recorded.phases}
    whole = _settled(
        recorded.components, run.allocator.requested_peak_bytes, measured.allocated_peak_bytes
    )
    if whole is None or {phase.name for phase in measured.phases} != set(own):
        return replace(measured, run=replace(run, components_reason=_disagreement(recorded, run)))
    return replace(
        measured,
        components=whole,
        library_workspace_bytes=whole.workspace_bytes - recorded.components.workspace_bytes,
        phases=tuple(_with_parts(phase, own[phase.name]) for phase in measured.phases),
        peak_at=recorded.peak_at,
        timeline=recorded.timeline,
        held_at_peak=recorded.held_at_peak,
    )


def _disagreement(recorded: Estimate, run: DeviceRun) -> str:
    return (
        "the run under the recorder went another way: it held "
        f"{recorded.allocated_peak_bytes:,} bytes of tensors in "
        f"{', '.join(phase.name for phase in recorded.phases) or 'no phase'}, where the measured "
        f"one asked for {run.allocator.requested_peak_bytes:,} bytes"
    )


def _with_parts(phase: Phase, recorded: Phase) -> Phase:
    if phase.allocator is None or recorded.components is None:
        return phase
    requested = phase.allocator.requested_peak_bytes
    parts = _settled(recorded.components, requested, phase.allocated_peak_bytes)
    return replace(phase, components=parts)


def _settled(recorded: Components, requested: int, allocated: int) -> Components | None:
    """The parts, with what the recorder did not see; None where it saw more than there was."""
    unseen = requested - recorded.total_bytes
    if unseen < 0:
        return None
    return replace(
        recorded,
        workspace_bytes=recorded.workspace_bytes + unseen,
        rounding_bytes=allocated - requested,
    )
