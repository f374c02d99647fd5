"""What a job needs under its settings, found by simulation, and what the planner would change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tritter_mem.config.gpus import GpuCard, find_gpu
from tritter_mem.config.schema import Profile
from tritter_mem.measure.jobs import Job
from tritter_mem.measure.ladder import Settings
from tritter_mem.planner.suggest import suggest
from tritter_mem.trace.peaks import WARMUP
from tritter_mem.units import format_bytes

if TYPE_CHECKING:
    import torch


def predictor(
    build: Callable[[torch.device], Job[Any]], card: GpuCard, allocator_conf: str = ""
) -> Callable[[Settings], int]:
    """A prediction for `Job.predict`: the job runs on `meta`, and is played through the allocator.

    Each settings are simulated once, in seconds, and remembered.

    Args:
        build: makes model, optimizer state and batch on a device, and returns the job. It is what
            makes the real job too.
        card: the card to stand for.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.

    Returns:
        For settings, the bytes that the card must hold, its CUDA context included.
    """
    known: dict[Settings, int] = {}

    def predict(settings: Settings) -> int:
        if settings not in known:
            known[settings] = _simulated(build, settings, card, allocator_conf)
        return known[settings]

    return predict


def _simulated(
    build: Callable[[torch.device], Job[Any]], settings: Settings, card: GpuCard, conf: str
) -> int:
    import torch

    from tritter_mem.trace.as_on_cuda import as_on_cuda
    from tritter_mem.trace.simulate import PhaseHook, simulate_workload

    def workload(device: str, phase: PhaseHook) -> None:
        with as_on_cuda(card.compute_capability):
            with phase("load"):
                job = build(torch.device(device))
            with phase(WARMUP):
                job.run(settings)
                job.undo()
            with phase("step"):
                job.run(settings)

    return simulate_workload(workload, card, conf).footprint_bytes


def advice(profile: Profile) -> Callable[[int], Sequence[str]]:
    """What the planner would change in a profile, for `Job.advise`."""
    card = find_gpu(profile.gpu.name)

    def advise(budget_bytes: int) -> Sequence[str]:
        found = suggest(profile, card, budget_bytes)
        return [f"plan suggests: {s.text}, saves {format_bytes(s.saves_bytes)}" for s in found]

    return advise
