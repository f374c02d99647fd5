"""The largest context or batch that fits a budget, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tritter_mem.config.gpus import GpuCard
from tritter_mem.config.schema import VISION_PREFIX_TOKENS, Profile
from tritter_mem.planner.compose import plan

Unknown = Literal["context", "batch"]
LIMITS: dict[Unknown, int] = {"context": 1 << 30, "batch": 65536}


def solve(
    profile: Profile, card: GpuCard, budget_bytes: int, unknown: Unknown, most: int | None = None
) -> int | None:
    """Find the largest context (tokens) or batch whose plan fits; one more does not.

    Args:
        profile: everything else.
        card: the card that it is planned for.
        budget_bytes: what the device's peak must not exceed.
        unknown: what to solve for.
        most: the largest value to think of; default: what a profile may hold.

    Returns:
        The largest value that fits; None where not even the smallest does.
    """

    def fits(value: int) -> bool:
        return plan(with_value(profile, unknown, value), card).footprint_bytes <= budget_bytes

    return largest(fits, smallest(profile, unknown), most or LIMITS[unknown])


def with_value(profile: Profile, unknown: Unknown, value: int) -> Profile:
    """The profile with another context or batch, not checked against the rules for profiles."""
    workload = profile.workload.model_copy(update={unknown: value})
    return profile.model_copy(update={"workload": workload})


def largest(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest integer of a range that fits, where what fits is a beginning of the range."""
    if not fits(low):
        return None
    if fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def smallest(profile: Profile, unknown: Unknown) -> int:
    """The smallest value that the rules for profiles allow."""
    if unknown == "batch":
        return 1
    prefix = VISION_PREFIX_TOKENS.get(profile.model.vision or "", 0)
    generated = profile.workload.new_tokens if profile.workload.mode == "inference" else 0
    return max(prefix + generated, profile.kv_cache.attention_sinks) + 1
