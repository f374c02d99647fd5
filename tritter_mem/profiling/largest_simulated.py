"""The largest context or batch that fits when it is simulated."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tritter_mem.config.named_profile import AnyProfile, NamedProfile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.transformers_run import transformers_run
from tritter_mem.planner.compose import budget_of, plan
from tritter_mem.planner.solve import LIMITS, find_largest, smallest, with_value
from tritter_mem.results.largest import Largest, Unknown
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.simulate import simulate
from tritter_mem.simulation.transformers_model import simulate_transformers

STEP = 200
"""The answer is within one part in so many of the first value that does not fit."""


def find_largest_simulated(
    profile: AnyProfile, unknown: Unknown, progress: Progress | None = None
) -> Largest:
    """Solve for one unknown of a profile, on its card and budget, by simulation.

    The search begins at what the plan says. Every value that is returned was itself simulated.

    Raises:
        ConfigError: the card is unknown.
        SimulationError: a named model cannot be run on `meta`.
    """
    card = find_gpu(profile.gpu.name)
    budget, low, limit = budget_of(profile, card), smallest(profile, unknown), LIMITS[unknown]
    shown = progress or Progress()

    @cache
    def footprint(value: int) -> int:
        tried = with_value(profile, unknown, value)
        shown.begin(f"{profile.name}: {unknown} {value:,}")
        if isinstance(tried, NamedProfile):
            run, conf = transformers_run(tried), tried.allocator.conf
            return simulate_transformers(run, card, conf, budget_bytes=budget).footprint_bytes
        return simulate(tried, fast=True, progress=shown, card=card).footprint_bytes

    value: int | None = None
    after: int | None = low
    if footprint(low) <= budget:
        guess = min(max(_first_guess(profile, unknown), low), limit)
        value, after = search(lambda v: footprint(v) - budget, low, guess, limit)
    return Largest(
        name=profile.name,
        gpu=card.name,
        unknown=unknown,
        basis="simulated",
        value=value,
        budget_bytes=budget,
        footprint_bytes=footprint(low if value is None else value),
        next_value=after,
        next_footprint_bytes=None if after is None else footprint(after),
    )


def _first_guess(profile: AnyProfile, unknown: Unknown) -> int:
    """What the plan says fits; what the profile has, where the plan is a lower bound."""
    if plan(profile, find_gpu(profile.gpu.name), plays=False).lower_bound_reason is not None:
        return int(getattr(profile.workload, unknown))
    return find_largest(profile, unknown).value or smallest(profile, unknown)


def search(over: Callable[[int], int], low: int, guess: int, limit: int) -> tuple[int, int | None]:
    """A value that is over by nothing, and a larger one that is over by something.

    One percent more than the value is over too. Where the plan knows of larger values that fit
    again, the guess is the last of them.

    Args:
        over: by how much a value is over; each first call with a value is a simulation.
        low: the smallest value, which is not over.
        guess: where to look first, from `low` to `limit`.
        limit: the largest value there is.

    Returns:
        Two values that are at most 0.5% apart, or `limit` and None.
    """
    smallest = low
    step = max(1, guess // STEP)
    if over(guess) <= 0:
        low = high = guess
        while high < limit:
            high, step = min(low + step, limit), 2 * step
            if over(high) > 0:
                break
            low = high
        else:
            return limit, None
    else:
        high = guess
        while over(low := max(high - step, smallest)) > 0:
            high, step = low, 2 * step
    while high - low > max(1, low // STEP):
        middle = (low + high) // 2
        low, high = (middle, high) if over(middle) <= 0 else (low, middle)
    more = low + 2 * max(1, low // STEP)
    if more < limit and over(more) <= 0:
        return search(over, smallest, more, limit)
    return low, high
