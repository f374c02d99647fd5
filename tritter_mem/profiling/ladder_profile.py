"""On which rung of the ladder a profile ends: simulated, and measured where there is a GPU.

A run is made in a separate process, which has no cache to clear, so that rung is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Profile
from tritter_mem.errors import MeasureError
from tritter_mem.measure import runs
from tritter_mem.measure.target import Target
from tritter_mem.models.bundled import run_settings
from tritter_mem.oom.ladder import (
    AS_IT_IS,
    CLEAR_CACHE,
    EVERY_LAYER,
    Offers,
    Rung,
    Settings,
    rungs,
)
from tritter_mem.planner.compose import budget_of
from tritter_mem.results.run import Kind, Ladder, LadderEnd, LadderStep, MemoryUse, Result
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.simulate import case_workload, simulate_workload
from tritter_model.config import RunConfig

WINDOW = 4096
"""Tokens that the context is truncated to where the profile has no window; the specification's."""


def offers_of(profile: Profile) -> Offers:
    """What the bundled model can give up under a profile."""
    work, window = profile.workload, profile.model.sliding_window or WINDOW
    bounded = profile.model.sliding_window and not profile.model.global_attention_every
    return Offers(
        training=work.mode == "training",
        checkpoint_every=_more_often(profile) if work.mode == "training" else (),
        batch=work.batch,
        window=window if work.context > window and not bounded else None,
    )


def _more_often(profile: Profile) -> tuple[int, ...]:
    """Every n-th layer, where that is more than the profile's own policy."""
    own = profile.training.checkpointing
    now = {"none": profile.model.num_hidden_layers, "every-nth": own.n, "every-layer": 1}
    most = now.get(own.policy, 2)  # the others recompute parts of every layer
    return tuple(n for n in EVERY_LAYER if n < most)


def run_with(profile: Profile, settings: Settings, card: GpuCard) -> RunConfig:
    """What the bundled model runs for a profile under a rung's settings."""
    case = run_settings(profile, card)
    if (n := settings.checkpoint_every) is not None:
        policy = "every-layer" if n == 1 else "every-nth"
        case = replace(case, training=replace(case.training, checkpointing=policy, n=n))
    if settings.micro_batch is not None and case.mode == "training":
        case = replace(case, training=replace(case.training, micro_batch=settings.micro_batch))
    elif settings.micro_batch is not None:
        case = replace(case, batch=settings.micro_batch)  # the others follow, in the same memory
    if settings.window is not None:
        bounded = replace(case.model, sliding_window=settings.window, global_attention_every=None)
        case = replace(case, model=bounded)
    return case


def profile_ladders(
    profile: Profile, target: Target, result: Result, progress: Progress
) -> Iterator[tuple[tuple[Ladder, ...], Sequence[str]]]:
    """Go down the ladder by simulation, then by running where the profile runs on a GPU.

    Args:
        profile: a resolved profile.
        target: the card to stand for, the card to fit, and the one that measures.
        result: the profile as it is, simulated.
        progress: shows which rung runs.

    Yields:
        After each ladder all so far, and what went wrong with this one.
    """
    card, budget = target.simulated, budget_of(profile, target.fitted)
    found = [simulated_ladder(profile, card, budget, progress, result.simulated)]
    yield tuple(found), []
    if target.card is None:
        return

    def measure(case: RunConfig) -> MemoryUse:
        progress.begin(f"{profile.name}, ladder: measuring")
        return runs.measure_once(case, target)

    try:
        found.append(measured_ladder(profile, card, budget, measure, target.kind))
    except MeasureError as error:
        yield tuple(found), [f"ladder: {problem}" for problem in error.problems]
    else:
        yield tuple(found), []


def simulated_ladder(
    profile: Profile,
    card: GpuCard,
    budget_bytes: int,
    progress: Progress,
    as_it_is: MemoryUse | None = None,
) -> Ladder:
    """Go down the ladder by simulation until a rung fits.

    Args:
        profile: a resolved profile.
        card: the card to stand for.
        budget_bytes: memory that may be used.
        progress: shows how far each simulation is.
        as_it_is: the profile simulated already; where it leaves repetitions out, so do the rungs.
    """
    fast = as_it_is is not None and as_it_is.shortened

    def simulated(rung: Rung) -> LadderStep:
        progress.begin(f"{profile.name}, {rung.name}")
        case = replace(run_with(profile, rung.settings, card), shortened=fast)
        known = as_it_is if rung.settings == AS_IT_IS else None
        use = known or simulate_workload(
            case_workload(case, progress), card, profile.allocator.conf
        )
        return _step(rung, _judged(use, budget_bytes), use)

    steps = tuple(_down(profile, simulated))
    return Ladder(kind="simulated", budget_bytes=budget_bytes, steps=steps)


def measured_ladder(
    profile: Profile,
    card: GpuCard,
    budget_bytes: int,
    measure: Callable[[RunConfig], MemoryUse],
    kind: Kind = "measured",
) -> Ladder:
    """Go down the ladder by measuring until a rung fits.

    Args:
        profile: a resolved profile.
        card: the card that measures.
        budget_bytes: memory that may be used.
        measure: runs a case on the card, in a separate process.
        kind: what its figures are.

    Raises:
        MeasureError: a run failed, and not for lack of memory.
    """

    def measured(rung: Rung) -> LadderStep:
        use = measure(run_with(profile, rung.settings, card))
        if (refused := use.out_of_memory) is None:
            return _step(rung, _judged(use, budget_bytes), use)
        step = _step(rung, "out of memory", use)  # which got only so far
        return replace(step, needs_bytes=None, detail=f"in {refused.phase}: {refused.operator}")

    steps = tuple(_down(profile, measured))
    return Ladder(kind=kind, budget_bytes=budget_bytes, steps=steps)


def _down(profile: Profile, try_on: Callable[[Rung], LadderStep]) -> Iterator[LadderStep]:
    """The rungs to the first that fits."""
    for rung in rungs(offers_of(profile)):
        if rung.name == CLEAR_CACHE:
            continue
        step = _step(rung, "refused", None) if rung.refused else try_on(rung)
        yield step
        if step.ended == "fits":
            return


def _judged(use: MemoryUse, budget_bytes: int) -> LadderEnd:
    return "fits" if use.footprint_bytes <= budget_bytes else "does not fit"


def _step(rung: Rung, ended: LadderEnd, use: MemoryUse | None) -> LadderStep:
    return LadderStep(
        rung=rung.name,
        settings=rung.settings.given_up(),
        ended=ended,
        needs_bytes=use.footprint_bytes if use else None,
        allocated_bytes=use.allocated_peak_bytes if use else None,
        reserved_bytes=use.reserved_peak_bytes if use else None,
        changes_result=rung.changes_result,
    )
