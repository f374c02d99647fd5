"""The largest context or batch that fits a budget, and memory against context length."""

from __future__ import annotations

from collections.abc import Callable

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.named_profile import AnyProfile, NamedProfile
from tritter_mem.config.profile import Profile, changed
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import ConfigError, UsageError
from tritter_mem.models.bundled import architecture_of
from tritter_mem.planner.compose import budget_of, plan
from tritter_mem.results.largest import Largest, Unknown
from tritter_mem.results.run import LONGEST_CONTEXT, ContextCurve

ROUND_TOKENS = 256
LIMITS: dict[Unknown, int] = {"context": 1 << 30, "batch": 65536}


def solve(
    profile: AnyProfile, card: GpuCard, budget_bytes: int, unknown: Unknown, most: int | None = None
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
    low = smallest(profile, unknown)
    return _solve(profile, card, budget_bytes, unknown, (low, most or LIMITS[unknown], 1))


def solve_roughly(
    profile: AnyProfile, card: GpuCard, budget_bytes: int, unknown: Unknown, most: int
) -> int | None:
    """A context that is a multiple of 256 tokens, or a batch, that fits where 256 more do not.

    Takes half as long as `solve`, and is as good a suggestion.
    """
    unit = ROUND_TOKENS if unknown == "context" else 1
    low = -(-smallest(profile, unknown) // unit)
    return _solve(profile, card, budget_bytes, unknown, (low, max(most // unit, low), unit))


def _solve(
    profile: AnyProfile,
    card: GpuCard,
    budget_bytes: int,
    unknown: Unknown,
    bounds: tuple[int, int, int],
    *,
    thorough: bool = False,
) -> int | None:
    """The largest multiple of a unit that fits; `bounds` are the first, the last, and the unit.

    `thorough`: look for larger ones behind some that do not.
    """
    first, last, unit = bounds

    def over(value: int) -> int:
        return _footprint_bytes(profile, card, unknown, value * unit) - budget_bytes

    def allocated_fits(value: int) -> bool:
        return _allocated_bytes(profile, card, unknown, value * unit) <= budget_bytes

    # What is reserved is no less than what is allocated, for which a plan takes much less time.
    high = largest(allocated_fits, first, last)
    found = None if high is None else _largest_below(over, first, high)
    if thorough and found is not None and high is not None:
        found = _with_more(over, found, high)
    return None if found is None else found * unit


def _largest_below(over: Callable[[int], int], low: int, high: int) -> int | None:
    """The largest value up to `high` that is over by nothing, with few looks at `over`.

    A value is guessed from how much its neighbours are over; every second time it is the middle, as
    what is reserved grows in steps.
    """
    over_high = over(high)
    if over_high <= 0:
        return high
    over_low = over(low)
    if over_low > 0:
        return None
    halve = False
    while high - low > 1:
        share = 0.5 if halve else -over_low / (over_high - over_low)
        guess = min(max(low + int((high - low) * share), low + 1), high - 1)
        found = over(guess)
        if found <= 0:
            low, over_low = guess, found
        else:
            high, over_high = guess, found
        halve = not halve
    return low


def _with_more(over: Callable[[int], int], found: int, high: int) -> int:
    """The largest value that fits, where some before it do not.

    What the allocator reserves beside tensors rises and falls: a free segment serves tensors of
    one size, and those that are a little larger need another. So values one percent apart are
    tried, from the largest whose tensors alone fit down to one that is known to fit.

    Args:
        over: by how much a value is over.
        found: it fits, and one more does not.
        high: the largest whose tensors alone fit.
    """
    step = max(1, found // 100)
    found = next((value for value in range(high, found, -step) if over(value) <= 0), found)
    while found < high:
        step = max(1, found // 100)
        if over(high) > 0:
            found = _largest_below(over, found, min(found + step, high)) or found
        if found + step > high or over(found + step) > 0:
            return found
        found += step
    return found


def _allocated_bytes(profile: AnyProfile, card: GpuCard, unknown: Unknown, value: int) -> int:
    return plan(with_value(profile, unknown, value), card, plays=False).footprint_bytes


def _footprint_bytes(profile: AnyProfile, card: GpuCard, unknown: Unknown, value: int) -> int:
    return plan(with_value(profile, unknown, value), card).footprint_bytes


def with_value(profile: AnyProfile, unknown: Unknown, value: int) -> AnyProfile:
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


def smallest(profile: AnyProfile, unknown: Unknown) -> int:
    """The smallest value that the rules for profiles allow."""
    if unknown == "batch":
        return 1
    if isinstance(profile, NamedProfile):
        return 1 if profile.workload.mode == "training" else profile.workload.new_tokens + 1
    tower = architecture_of(profile.model).vision
    prefix = 0 if tower is None else tower.patches
    generated = profile.workload.new_tokens if profile.workload.mode == "inference" else 0
    return max(prefix + generated, profile.kv_cache.attention_sinks) + 1


def find_largest(profile: AnyProfile, unknown: Unknown) -> Largest:
    """Solve for one unknown of a profile, on its card and budget.

    Raises:
        ConfigError: the card is unknown.
        UsageError: the plan is a lower bound.
    """
    card = find_gpu(profile.gpu.name)
    if (reason := plan(profile, card, plays=False).lower_bound_reason) is not None:
        raise UsageError(f"--max: there is no answer for {profile.name}: {reason}")
    budget, first = budget_of(profile, card), smallest(profile, unknown)
    value = _solve(profile, card, budget, unknown, (first, LIMITS[unknown], 1), thorough=True)
    at = first if value is None else value
    after = None if at >= LIMITS[unknown] else at + 1
    return Largest(
        name=profile.name,
        gpu=card.name,
        unknown=unknown,
        basis="planned",
        value=value,
        budget_bytes=budget,
        footprint_bytes=_footprint_bytes(profile, card, unknown, at),
        next_value=after,
        next_footprint_bytes=(
            None if after is None else _footprint_bytes(profile, card, unknown, after)
        ),
    )


CACHE_TYPES = ("bfloat16", "int8", "int4", "int2")
SHORTEST = 4096


def context_curves(profile: AnyProfile) -> tuple[ContextCurve, ...]:
    """Plan the profile at lengths around its own, for each cache type and number of KV heads.

    The points leave out what the allocator reserves beside tensors, which takes several times as
    long to find; the largest context counts it.

    The head counts are those that people choose between: as many as query heads, 8, and the
    profile's own.

    Args:
        profile: a resolved profile; what it says of anything but cache and context stays.

    Returns:
        One curve for each combination that the rules for profiles allow, and none for training,
        which has no cache.

    Raises:
        ConfigError: the card is unknown.
    """
    if profile.workload.mode == "training":
        return ()
    card = find_gpu(profile.gpu.name)
    if isinstance(profile, NamedProfile):
        return _named_curves(profile, card)
    types = dict.fromkeys((*CACHE_TYPES, profile.kv_cache.dtype))
    return tuple(
        _curve(variant, card, (dtype, heads), own=(dtype, heads) == _cache_of(profile))
        for heads in _head_counts(profile)
        for dtype in types
        if (variant := _variant(profile, dtype, heads)) is not None
    )


def _named_curves(profile: NamedProfile, card: GpuCard) -> tuple[ContextCurve, ...]:
    """One curve: the cache is the model's own. None where the plan is a lower bound."""
    from tritter_mem.models.transformers_run import transformers_run

    if plan(profile, card, plays=False).lower_bound_reason is not None:
        return ()
    return (_curve(profile, card, (transformers_run(profile).cache_name, 0), own=True),)


def _cache_of(profile: Profile) -> tuple[str, int]:
    return profile.kv_cache.dtype, profile.model.kv_heads


def _head_counts(profile: Profile) -> list[int]:
    heads, own = profile.model.num_attention_heads, profile.model.kv_heads
    usual = {8} if heads % 8 == 0 else set()
    return sorted({heads, own} | usual, reverse=True)


def _variant(profile: Profile, dtype: str, kv_heads: int) -> Profile | None:
    """The profile with another cache; None where the rules refuse it."""
    settings = {"kv_cache.dtype": dtype, "model.num_key_value_heads": kv_heads}
    try:
        return changed(profile, settings)
    except ConfigError:
        return None


def _curve(
    profile: AnyProfile, card: GpuCard, cache: tuple[str, int], *, own: bool
) -> ContextCurve:
    dtype, kv_heads = cache
    largest = solve(profile, card, budget_of(profile, card), "context")
    # A named model has one curve, so it can go to where it meets the budget.
    reaching = largest or 0 if isinstance(profile, NamedProfile) else 0
    return ContextCurve(
        cache_dtype=dtype,
        kv_heads=kv_heads,
        own=own,
        points=tuple(
            (length, _allocated_bytes(profile, card, "context", length))
            for length in _lengths(profile, reaching)
        ),
        largest_context=largest,
    )


def _lengths(profile: AnyProfile, reaching: int = 0) -> list[int]:
    """Four lengths an octave up to twice the profile's context, and that context itself.

    Further, up to the power of two behind `reaching`, where that is more.
    """
    most = max(2 * profile.workload.context, 2 * SHORTEST, 1 << reaching.bit_length())
    most = min(most, LONGEST_CONTEXT)
    least = max(smallest(profile, "context"), SHORTEST)
    octaves = [1 << p for p in range(SHORTEST.bit_length() - 1, most.bit_length())]
    steps = (start * quarter // 4 for start in octaves for quarter in range(4, 8))
    lengths = {length for length in steps if least <= length <= most}
    return sorted(lengths | {profile.workload.context})
