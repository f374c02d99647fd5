"""The trade-off of every checkpointing policy: simulated, and measured beside that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Profile, changed
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.measure import runs
from tritter_mem.measure.target import STANDIN, Target
from tritter_mem.models.bundled import run_settings
from tritter_mem.results.run import CheckpointCase, OutOfMemory
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.simulate import PhaseHook, both, bundled_workload, simulate_workload
from tritter_mem.units import format_bytes

Cases = tuple[CheckpointCase, ...]
POLICIES = (
    ("none", 1), ("every-layer", 1),
    ("every-nth", 2), ("every-nth", 4), ("every-nth", 8),
    ("segments", 2), ("segments", 4), ("segments", 8),
    ("selective-attention", 1), ("selective-matmul", 1),
)  # fmt: skip
"""The policies that are compared, with their n; the others are compared with the first."""


def checkpointing_trade_off(
    profile: Profile, progress: Progress | None = None, card: GpuCard | None = None
) -> Cases:
    """Simulate a training step under every policy, and count its operations.

    Policies over more layers than the model has are left out.

    Args:
        profile: a resolved training profile; its own policy does not matter.
        progress: shows how far each simulation is.
        card: the card to stand for, where it is not the profile's.

    Raises:
        UsageError: the profile is no training.
    """
    if profile.workload.mode != "training":
        raise UsageError(
            f"{profile.name}: got workload.mode {profile.workload.mode}, but checkpointing is of "
            "training: add --mode training"
        )
    layers = profile.model.num_hidden_layers
    progress = progress or Progress()
    fitting = [(policy, n) for policy, n in POLICIES if n <= layers]
    cases = [simulate_policy(profile, policy, n, progress, card) for policy, n in fitting]
    base = cases[0].flops
    return mark_front(replace(case, recomputed_flops=case.flops - base) for case in cases)


def simulate_policy(
    profile: Profile, policy: str, n: int, progress: Progress, card: GpuCard | None = None
) -> CheckpointCase:
    """Simulate a training step under one policy, and count its operations."""
    progress.begin(f"{profile.name}, {policy}" + (f" {n}" if n > 1 else ""))
    from tritter_mem.simulation.flops import FlopCounter  # which imports Triton, by PyTorch's table

    card, counter = card or find_gpu(profile.gpu.name), FlopCounter()
    checkpointing = {"policy": policy, "n": n}
    case = bundled_workload(
        changed(profile, {"training.checkpointing": checkpointing}), card, progress
    )

    def counted(device: str, phase: PhaseHook) -> None:
        case(device, both(counter.phase, phase))

    with counter:  # outside the recorder, which takes composite operators apart
        use = simulate_workload(counted, card, profile.allocator.conf)
    return CheckpointCase(
        policy=policy,
        n=n,
        allocated_peak_bytes=use.allocated_peak_bytes,
        reserved_peak_bytes=use.reserved_peak_bytes or 0,
        activations_peak_bytes=max(
            phase.components.activations_bytes for phase in use.phases if phase.components
        ),
        flops=counter.by_phase["forward"] + counter.by_phase["backward"],
    )


def mark_front(cases: Iterable[CheckpointCase]) -> Cases:
    """Mark the Pareto front: cases that no other beats in memory or work without being worse."""
    found = tuple(cases)
    return tuple(replace(case, on_front=not _beaten(case, found)) for case in found)


def _beaten(case: CheckpointCase, by: Sequence[CheckpointCase]) -> bool:
    own = (case.allocated_peak_bytes, case.flops)
    return any(
        (other.allocated_peak_bytes, other.flops) != own
        and other.allocated_peak_bytes <= own[0]
        and other.flops <= own[1]
        for other in by
    )


def measured_trade_off(
    profile: Profile, cases: Sequence[CheckpointCase], target: Target, progress: Progress
) -> Iterator[tuple[Cases, Sequence[str]]]:
    """Measure a training step under each policy, one after another; nothing where nothing can be.

    One that fails does not end the others. A budget caps each, as it caps the profile's own run.

    Args:
        profile: a resolved training profile; its own policy does not matter.
        cases: what was simulated.
        target: the device, and the card to run as on.
        progress: shows which one runs.

    Yields:
        After each policy all cases, with what is measured so far, and what went wrong with this.
    """
    if target.standin:
        yield tuple(replace(case, measured_reason=STANDIN) for case in cases), []
        return
    found = list(cases)
    for number, case in enumerate(cases if target.runs else ()):
        name = f"{case.policy}:{case.n}" if case.n > 1 else case.policy
        progress.begin(f"{profile.name}, {name}: measuring")
        found[number] = measured = _measured(profile, case, target)
        failed = measured.measured_allocated_peak_bytes is None
        yield tuple(found), [f"{name}: {measured.measured_reason}"] if failed else []


def _measured(profile: Profile, case: CheckpointCase, target: Target) -> CheckpointCase:
    own = changed(profile, {"training.checkpointing": {"policy": case.policy, "n": case.n}})
    try:
        use = runs.measure_once(run_settings(own, target.simulated), target)
    except MeasureError as error:
        return replace(case, measured_reason=str(error))
    refused = use.out_of_memory
    return replace(
        case,
        measured_allocated_peak_bytes=use.allocated_peak_bytes,
        measured_reserved_peak_bytes=use.reserved_peak_bytes,
        measured_seconds=None if refused else runs.seconds_of(use),
        measured_reason=_sentence(refused) if refused else None,
    )


def _sentence(refused: OutOfMemory) -> str:
    return (
        f"out of memory in {refused.phase or 'no phase'}: "
        f"{format_bytes(refused.requested_bytes)} more than {format_bytes(refused.reserved_bytes)} "
        f"reserved, of {format_bytes(refused.limit_bytes)}"
    )
