"""The checkpointing trade-off: what each policy saves in memory, and costs in recomputed work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tritter_mem.config.gpus import GpuCard, find_gpu
from tritter_mem.config.schema import Profile
from tritter_mem.errors import UsageError
from tritter_mem.planner.change import changed
from tritter_mem.results import CheckpointCase
from tritter_mem.trace.progress import Progress
from tritter_mem.trace.simulate import PhaseHook, both, bundled_workload, simulate_workload

POLICIES = (
    ("none", 1), ("every-layer", 1),
    ("every-nth", 2), ("every-nth", 4), ("every-nth", 8),
    ("segments", 2), ("segments", 4), ("segments", 8),
    ("selective-attention", 1), ("selective-matmul", 1),
)  # fmt: skip
"""The policies that are compared, with their n; the first is what the others are held against."""


def checkpointing_trade_off(
    profile: Profile, progress: Progress | None = None, card: GpuCard | None = None
) -> tuple[CheckpointCase, ...]:
    """Simulate a training step under every policy, and count its operations.

    Policies over more layers than the model has are left out.

    Args:
        profile: a resolved training profile; its own policy does not matter.
        progress: told how far each simulation is.
        card: the card to stand for, where it is not the profile's.

    Raises:
        UsageError: the profile is no training.
    """
    if profile.workload.mode != "training":
        raise UsageError(
            f"{profile.name}: found workload.mode {profile.workload.mode}; checkpointing is of "
            "training: add --mode training"
        )
    layers = profile.model.num_hidden_layers
    told = progress or Progress()
    fitting = [(policy, n) for policy, n in POLICIES if n <= layers]
    cases = [simulate_policy(profile, policy, n, told, card) for policy, n in fitting]
    base = cases[0].flops
    return mark_front(replace(case, recomputed_flops=case.flops - base) for case in cases)


def simulate_policy(
    profile: Profile, policy: str, n: int, progress: Progress, card: GpuCard | None = None
) -> CheckpointCase:
    """Simulate a training step under one policy, and count its operations."""
    from tritter_mem.trace.flops import FlopCounter

    progress.begin(f"{profile.name}, {policy}" + (f" {n}" if n > 1 else ""))
    card, counter = card or find_gpu(profile.gpu.name), FlopCounter()
    checkpointing = {"policy": policy, "n": n}
    case = bundled_workload(
        changed(profile, {"training.checkpointing": checkpointing}), card, progress
    )

    def counted(device: str, phase: PhaseHook) -> None:
        case(device, both(counter.phase, phase))

    with counter:  # outside the recorder, which takes composite operators apart
        estimate = simulate_workload(counted, card, profile.allocator.conf)
    return CheckpointCase(
        policy=policy,
        n=n,
        allocated_peak_bytes=estimate.allocated_peak_bytes,
        reserved_peak_bytes=estimate.reserved_peak_bytes or 0,
        activations_peak_bytes=max(
            phase.components.activations_bytes for phase in estimate.phases if phase.components
        ),
        flops=counter.by_phase["forward"] + counter.by_phase["backward"],
    )


def mark_front(cases: Iterable[CheckpointCase]) -> tuple[CheckpointCase, ...]:
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
