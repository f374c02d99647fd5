"""On which rung of the ladder a profile ends: simulated, and measured where there is a GPU.

A run is made in a process of its own, which has no cache to clear, so that rung is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tritter_mem.config.gpus import GpuCard
from tritter_mem.config.schema import Profile
from tritter_mem.measure.ladder import CLEAR_CACHE, EVERY_LAYER, Offers, Rung, Settings, rungs
from tritter_mem.results import Estimate, Ladder, LadderEnd, LadderStep
from tritter_mem.trace.bundled import run_settings
from tritter_mem.trace.progress import Progress
from tritter_mem.trace.simulate import PhaseHook, both, simulate_workload
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


def simulated_ladder(
    profile: Profile, card: GpuCard, budget_bytes: int, progress: Progress, fast: bool = False
) -> Ladder:
    """Go down the ladder by simulation until a rung fits.

    Args:
        profile: a resolved profile.
        card: the card to stand for.
        budget_bytes: memory that may be used.
        progress: told how far each simulation is.
        fast: leave out the chunks and tokens that take the memory of those before them.
    """

    def simulated(rung: Rung) -> LadderStep:
        progress.begin(f"{profile.name}, {rung.name}")
        case = replace(run_with(profile, rung.settings, card), shortened=fast)
        estimate = _simulated(case, card, profile.allocator.conf, progress)
        return _step(rung, _judged(estimate, budget_bytes), estimate)

    steps = tuple(_down(profile, simulated))
    return Ladder(kind="simulated", budget_bytes=budget_bytes, steps=steps)


def measured_ladder(
    profile: Profile, card: GpuCard, budget_bytes: int, measure: Callable[[RunConfig], Estimate]
) -> Ladder:
    """Go down the ladder by measuring until a rung fits.

    Args:
        profile: a resolved profile.
        card: the card that measures.
        budget_bytes: memory that may be used.
        measure: runs a case on the card, in a process of its own.

    Raises:
        MeasureError: a run failed, and not for lack of memory.
    """

    def measured(rung: Rung) -> LadderStep:
        estimate = measure(run_with(profile, rung.settings, card))
        if (refused := estimate.out_of_memory) is None:
            return _step(rung, _judged(estimate, budget_bytes), estimate)
        step = _step(rung, "out of memory", estimate)  # which got only so far
        return replace(step, needs_bytes=None, detail=f"in {refused.phase}: {refused.operator}")

    steps = tuple(_down(profile, measured))
    return Ladder(kind="measured", budget_bytes=budget_bytes, steps=steps)


def _down(profile: Profile, try_on: Callable[[Rung], LadderStep]) -> Iterator[LadderStep]:
    """The rungs to the first that fits."""
    for rung in rungs(offers_of(profile)):
        if rung.name == CLEAR_CACHE:
            continue
        step = _step(rung, "refused", None) if rung.refused else try_on(rung)
        yield step
        if step.ended == "fits":
            return


def _judged(estimate: Estimate, budget_bytes: int) -> LadderEnd:
    return "fits" if estimate.footprint_bytes <= budget_bytes else "does not fit"


def _step(rung: Rung, ended: LadderEnd, estimate: Estimate | None) -> LadderStep:
    return LadderStep(
        rung=rung.name,
        settings=rung.settings.given_up(),
        ended=ended,
        needs_bytes=estimate.footprint_bytes if estimate else None,
        allocated_bytes=estimate.allocated_peak_bytes if estimate else None,
        reserved_bytes=estimate.reserved_peak_bytes if estimate else None,
        changes_result=rung.changes_result,
    )


def _simulated(case: RunConfig, card: GpuCard, conf: str, progress: Progress) -> Estimate:
    def workload(device: str, phase: PhaseHook) -> None:
        from tritter_model.run import run

        with progress.following(case):
            run(case, device, both(progress.entering, phase))

    return simulate_workload(workload, card, conf)
