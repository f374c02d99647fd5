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
from tritter_mem.results.run import LONGEST_CONTEXT, ContextCurve, MemoryUse

ROUND_TOKENS = 256
ROUGH_STEPS = 64
TRIED = 16
AHEAD = 4
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
    return _Solver(profile, card, budget_bytes, unknown).largest(low, most or LIMITS[unknown])


def solve_roughly(
    profile: AnyProfile, card: GpuCard, budget_bytes: int, unknown: Unknown, most: int
) -> tuple[int, MemoryUse] | None:
    """A context in steps of many tokens, or a batch, that fits where one step more does not.

    A step is 256 tokens, or up to 1/64 of the most of them. As good a suggestion as what `solve`
    finds, and found sooner.

    Returns:
        The value and its plan; None where none fits.
    """
    unit = 1
    if unknown == "context":
        unit = 1 << max(most // ROUGH_STEPS, ROUND_TOKENS).bit_length() - 1
    solver = _Solver(profile, card, budget_bytes, unknown, unit)
    low = -(-smallest(profile, unknown) // unit)
    found = solver.largest(low, max(most // unit, low))
    return None if found is None else (found * unit, solver.plan(found))


class _Solver:
    """Plans of a profile with other contexts or batches, each made once.

    Args:
        profile: everything else.
        card: the card that it is planned for.
        budget_bytes: what the device's peak must not exceed.
        unknown: what to solve for.
        unit: values are counted in multiples of it.
    """

    def __init__(
        self,
        profile: AnyProfile,
        card: GpuCard,
        budget_bytes: int,
        unknown: Unknown,
        unit: int = 1,
    ) -> None:
        self._profile, self._card, self._budget_bytes = profile, card, budget_bytes
        self._unknown: Unknown = unknown
        self._unit = unit
        self._plans: dict[tuple[int, bool], MemoryUse] = {}
        self._allocated: dict[int, int] = {}

    def plan(self, value: int, *, briefly: bool = False) -> MemoryUse:
        """The plan of a value. In brief it is quick, and good to search with alone."""
        whole, brief = self._plans.get((value, False)), self._plans.get((value, True))
        if whole is not None:
            return whole
        if brief is not None and (briefly or not brief.cache_releases):
            return brief  # tokens are left out only where that changes nothing, or in brief
        profile = with_value(self._profile, self._unknown, value * self._unit)
        found = self._plans[value, briefly] = plan(profile, self._card, briefly=briefly)
        return found

    def largest(self, first: int, last: int, *, thorough: bool = False) -> int | None:
        """The largest value that fits, where one more does not; None where the first does not.

        The search uses quick plans: first the allocated memory, which is never above the reserved
        memory, then brief plans. The value that it finds is confirmed by a full plan.

        Args:
            first: the smallest value.
            last: the largest value.
            thorough: look for larger ones behind some that do not fit.
        """
        # To find the tensors of a training step takes longer than to serve them.
        trains = self._profile.workload.mode == "training"
        quick = self._briefly_over if trains and not thorough else self._allocated_over
        high = self._largest_of_any(quick, first, last)
        found = None if high is None else largest_below(self._briefly_over, first, high)
        if found is None or high is None:
            return None
        found = self._largest_at_most(found, first)
        if thorough and found is not None:
            found = _with_more(self._over, found, high)
        return found

    def _largest_of_any(self, over: Callable[[int], int], first: int, last: int) -> int | None:
        """The largest value that fits. One that is far beyond would take long to plan."""
        low, now = first, getattr(self._profile.workload, self._unknown) // self._unit
        while low < last:
            high = min(max(2 * low, now), last)
            if over(high) > 0:
                return largest_below(over, low, high)
            low = high
        return low if over(low) <= 0 else None

    def _largest_at_most(self, high: int, first: int) -> int | None:
        """The same among values up to one that fits in brief."""
        low, step = high, max(1, high // 256)
        while self._over(low) > 0:
            if low == first:
                return None
            low, high, step = max(low - step, first), low, 2 * step
        return low if low == high else largest_below(self._over, low, high)

    def _over(self, value: int) -> int:
        over = self._briefly_over(value)
        return over if over > 0 else self.plan(value).footprint_bytes - self._budget_bytes

    def _briefly_over(self, value: int) -> int:
        return self.plan(value, briefly=True).footprint_bytes - self._budget_bytes

    def _allocated_over(self, value: int) -> int:
        if value not in self._allocated:
            at = value * self._unit
            found = _allocated_bytes(self._profile, self._card, self._unknown, at)
            self._allocated[value] = found - self._budget_bytes
        return self._allocated[value]


def largest_below(over: Callable[[int], int], low: int, high: int) -> int | None:
    """The largest value of a range that is over by nothing, where one more is over by something.

    A value is guessed from how much its neighbours are over, but no more values are looked at than
    one more than by halving: the ITP method (Oliveira and Takahashi, 2020).

    Args:
        over: by how much a value is over.
        low: the first of the range.
        high: the last of it.

    Returns:
        `high` where it is not over; None where `low` is.
    """
    over_high = over(high)
    if over_high <= 0:
        return high
    over_low = over(low)
    if over_low > 0:
        return None
    most, push, looks = 1 << (high - low).bit_length(), 0.02 / (high - low), 0
    while high - low > 1:
        middle = (low + high) / 2
        guess = low - over_low * (high - low) / (over_high - over_low)
        # A little behind the guess, the other end moves too.
        towards = 1 if guess <= middle else -1
        beyond = min(max(push * (high - low) ** 2, 1), abs(middle - guess))
        guess += towards * beyond
        reach = most / (1 << looks) - (high - low) / 2
        if abs(guess - middle) > reach:
            guess = middle - towards * reach
        at = min(max(int(guess), low + 1), high - 1)
        found, looks = over(at), looks + 1
        if found <= 0:
            low, over_low = at, found
        else:
            high, over_high = at, found
    return low


def _with_more(over: Callable[[int], int], found: int, high: int) -> int:
    """The largest value that fits, where some before it do not.

    What the allocator reserves beside tensors rises and falls: a free segment serves tensors of
    one size, and those that are a little larger need another. So some values are tried, from the
    largest whose tensors alone fit down to one that is known to fit, and then some that are up to
    one percent larger than what is found.

    Args:
        over: by how much a value is over.
        found: it fits, and one more does not.
        high: the largest whose tensors alone fit.
    """
    step = max(1, found // 100, (high - found) // TRIED)
    found = next((value for value in range(high, found, -step) if over(value) <= 0), found)
    while found < high:
        step = max(1, found // 100)
        if over(high) > 0:
            found = largest_below(over, found, min(found + step, high)) or found
        ahead = (found + step * part // AHEAD for part in range(AHEAD, 0, -1))
        further = (value for value in ahead if found < value <= high and over(value) <= 0)
        if (value := next(further, None)) is None:
            return found
        found = value
    return found


def _allocated_bytes(profile: AnyProfile, card: GpuCard, unknown: Unknown, value: int) -> int:
    return plan(with_value(profile, unknown, value), card, plays=False).footprint_bytes


def with_value(profile: AnyProfile, unknown: Unknown, value: int) -> AnyProfile:
    """The profile with another context or batch, not checked against the rules for profiles."""
    workload = profile.workload.model_copy(update={unknown: value})
    return profile.model_copy(update={"workload": workload})


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
    solver = _Solver(profile, card, budget, unknown)
    value = solver.largest(first, LIMITS[unknown], thorough=True)
    at = first if value is None else value
    after = None if at >= LIMITS[unknown] else at + 1
    return Largest(
        name=profile.name,
        gpu=card.name,
        unknown=unknown,
        basis="planned",
        value=value,
        budget_bytes=budget,
        footprint_bytes=solver.plan(at).footprint_bytes,
        next_value=after,
        next_footprint_bytes=None if after is None else solver.plan(after).footprint_bytes,
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
