"""The plan: every component's formula put together, phase by phase, against a card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tritter_mem import torch_release
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.config.cards import GpuCard
from tritter_mem.config.named_profile import AnyProfile, NamedProfile
from tritter_mem.planner.case import Case
from tritter_mem.planner.inference import inference_moments
from tritter_mem.planner.moments import Moment, highest
from tritter_mem.planner.reserved import reserved_for
from tritter_mem.planner.training import training_moments
from tritter_mem.planner.weights import (
    embeddings_bytes,
    optimizer_state_bytes,
    vision_bytes,
    weights_bytes,
)
from tritter_mem.results.run import MemoryUse, Phase


def budget_of(profile: AnyProfile, card: GpuCard) -> int:
    """What may be used: the profile's budget, else the card's memory less a margin."""
    return profile.gpu.budget or card.default_budget_bytes


def plan(
    profile: AnyProfile, card: GpuCard, *, plays: bool = True, briefly: bool = False
) -> MemoryUse:
    """Plan a profile's memory on a card by formula.

    A named model is planned as transformers runs it. Where activations of its kind have no
    formulas, the answer is a lower bound, and its `lower_bound_reason` says what is missing.

    The allocated peak is what is alive throughout (weights, cache, optimizer state, workspaces of
    libraries) and the highest moment of the run. What PyTorch's allocator reserves is found by
    playing the plan's tensors through it; for training and vision towers that is not planned. The
    device's peak is the reserved one, or else the allocated one, and the card's context.

    Args:
        profile: a resolved profile.
        card: the card; it decides the libraries' workspaces, the context, and how far attention is
            split.
        plays: whether to play the tensors through the allocator. Without, what is reserved is
            unknown, and the plan is made several times as fast.
        briefly: whether to play fewer tokens than are generated, see `plan_transformers`. Such a
            plan is there to search with; what is found must be planned in whole.

    Raises:
        ConfigError: the allocator's settings are wrong.
    """
    parse_alloc_conf(profile.allocator.conf)  # whether or not this plan plays the allocator
    if isinstance(profile, NamedProfile):
        use = _plan_named(profile, card, plays=plays, briefly=briefly)
    else:
        budget = budget_of(profile, card) if plays else None
        use = plan_case(Case.of(profile, card), budget, plays=plays)
    if not card.caveat:
        return use
    return replace(use, caveat="; ".join(filter(None, (card.caveat, use.caveat))))


def _plan_named(profile: NamedProfile, card: GpuCard, *, plays: bool, briefly: bool) -> MemoryUse:
    from tritter_mem.models.shape_tensors import NotPlannedError
    from tritter_mem.models.transformers_run import transformers_run
    from tritter_mem.planner.least import least_memory
    from tritter_mem.planner.transformers_engine import plan_transformers

    run = transformers_run(profile)
    try:
        budget = budget_of(profile, card) if plays else None
        conf = profile.allocator.conf
        return plan_transformers(run, card, conf, plays=plays, briefly=briefly, budget_bytes=budget)
    except NotPlannedError as error:
        return least_memory(run, card, str(error))


def plan_case(case: Case, budget_bytes: int | None = None, *, plays: bool = True) -> MemoryUse:
    """The plan of a case, see `plan`."""
    card, library = case.card, library_bytes(case)
    loaded = {
        "weights": weights_bytes(case),
        "embeddings": embeddings_bytes(case),
        "vision": vision_bytes(case),
        "kv_cache": kv_cache_bytes(case),
    }
    # Workspaces and the optimizer's state are there from the warm-up on.
    warm = {"optimizer_state": optimizer_state_bytes(case), "workspace": library}
    load, *later = [moment.plus(loaded) for moment in _moments(case)]
    moments = [load, *(moment.plus(warm) for moment in later)]
    peak = highest(moments)
    found = reserved_for(case, budget_bytes) if plays else None
    reserved = None if found is None else found.peak_bytes
    return MemoryUse(
        device=card.name,
        components=peak.components(),
        phases=tuple(_phase(moment) for moment in moments),
        allocated_peak_bytes=peak.total_bytes,
        peak_at=f"{peak.phase}: {peak.step}",
        library_workspace_bytes=library,
        reserved_peak_bytes=reserved,
        cache_releases=0 if found is None else found.releases,
        context_bytes=card.context_bytes,
        device_peak_bytes=(reserved or peak.total_bytes) + card.context_bytes,
    )


def kv_cache_bytes(case: Case) -> int:
    """The whole cache, all layers and sequences; 0 in training."""
    if case.trains:
        return 0
    layers = case.architecture.counted_layers
    return sum(count * layer.cache_bytes(case.cache) for layer, count in layers.items())


def kv_bytes_per_token(case: Case) -> int:
    """What a token behind the context adds to the cache of one sequence, with its part of scales.

    Layers with a window add nothing once it is full.
    """
    group = case.cache.group
    start = case.work.context
    short, long = (replace(case.cache, batch=1, context=start + n) for n in (0, group))
    layers = case.architecture.counted_layers
    return sum(
        count * (layer.cache_bytes(long) - layer.cache_bytes(short)) // group
        for layer, count in layers.items()
    )


def library_bytes(case: Case) -> int:
    """Workspaces of cuBLAS: one a handle and stream, and each thread has its own handle.

    Training has two, because the backward pass runs in a thread of its own; so has a decode step
    that is captured, on a separate stream. The vision tower's products have a bias, for which
    cuBLASLt may take one more in the first thread. Where PyTorch gives a workspace back after each
    call, the plan takes it that one is there at the peak, which is one too many for some peaks.
    """
    workspace = case.card.cublas_workspace_bytes
    if not torch_release.keeps_workspaces():
        return workspace
    handles = 2 if case.trains or case.captures else 1
    has_bias = case.architecture.vision is not None
    return handles * workspace + has_bias * torch_release.cublaslt_workspace_bytes()


def _moments(case: Case) -> Iterator[Moment]:
    return training_moments(case) if case.trains else inference_moments(case)


def _phase(moment: Moment) -> Phase:
    return Phase(
        name=moment.phase,
        allocated_peak_bytes=moment.total_bytes,
        components=moment.components(),
    )
