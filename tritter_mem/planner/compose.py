"""The plan: every component's formula put together, phase by phase, against a card."""

from __future__ import annotations

from collections.abc import Iterable

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Profile
from tritter_mem.planner.inference import inference_moments
from tritter_mem.planner.kv_cache import kv_cache_bytes
from tritter_mem.planner.moments import Moment, highest, library_bytes
from tritter_mem.planner.training import optimizer_state_bytes, training_moments
from tritter_mem.planner.vision import vision_bytes
from tritter_mem.planner.weights import embeddings_bytes, weights_bytes
from tritter_mem.results.run import Estimate, Phase


def budget_of(profile: Profile, card: GpuCard) -> int:
    """What may be used: the profile's budget, else the card's memory less a margin."""
    return profile.gpu.budget or card.default_budget_bytes


def plan(profile: Profile, card: GpuCard) -> Estimate:
    """Plan a profile's memory on a card by formula.

    The allocated peak is what is alive throughout (weights, cache, optimizer state, workspaces of
    libraries) and the highest moment of the run. What PyTorch's allocator reserves beyond it is not
    planned: that takes simulation. The device's peak is the allocated one and the card's context.

    Args:
        profile: a resolved profile.
        card: the card; it decides the libraries' workspaces, the context, and how far attention is
            split.
    """
    library = library_bytes(profile, card)
    loaded = {
        "weights": weights_bytes(profile),
        "embeddings": embeddings_bytes(profile),
        "vision": vision_bytes(profile),
        "kv_cache": kv_cache_bytes(profile),
    }
    # Workspaces and the optimizer's state are there from the warm-up on.
    warm = {"optimizer_state": optimizer_state_bytes(profile), "workspace": library}
    load, *later = [moment.plus(loaded) for moment in _moments(profile, card)]
    moments = [load, *(moment.plus(warm) for moment in later)]
    peak = highest(moments)
    return Estimate(
        device=card.name,
        components=peak.components(),
        phases=tuple(_phase(moment) for moment in moments),
        allocated_peak_bytes=peak.total_bytes,
        peak_at=f"{peak.phase}: {peak.step}",
        library_workspace_bytes=library,
        context_bytes=card.context_bytes,
        device_peak_bytes=peak.total_bytes + card.context_bytes,
    )


def _moments(profile: Profile, card: GpuCard) -> Iterable[Moment]:
    if profile.workload.mode == "training":
        return training_moments(profile)
    return inference_moments(profile, card.multiprocessors)


def _phase(moment: Moment) -> Phase:
    return Phase(
        name=moment.phase,
        allocated_peak_bytes=moment.total_bytes,
        components=moment.components(),
    )
