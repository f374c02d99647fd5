"""Memory against context length, for each way to store the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.config.gpus import GpuCard, find_gpu
from tritter_mem.config.schema import Profile
from tritter_mem.errors import ConfigError
from tritter_mem.planner.change import changed
from tritter_mem.planner.compose import plan
from tritter_mem.planner.solve import smallest, solve, with_value
from tritter_mem.planner.verdict import budget_of

CACHE_TYPES = ("bfloat16", "int8", "int4", "int2")
SHORTEST = 4096
LONGEST = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextCurve:
    """What one kind of cache needs at each context length.

    Attributes:
        cache_dtype: as in `kv_cache.dtype`.
        kv_heads: as in `model.num_key_value_heads`.
        own: whether this is the profile's own cache.
        points: (context in tokens, bytes that the card must hold), ascending.
        largest_context: the longest context that fits the budget; None where none does.
    """

    cache_dtype: str
    kv_heads: int
    own: bool
    points: tuple[tuple[int, int], ...]
    largest_context: int | None


def context_curves(profile: Profile) -> tuple[ContextCurve, ...]:
    """Plan the profile at lengths around its own, for each cache type and number of KV heads.

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
    types = dict.fromkeys((*CACHE_TYPES, profile.kv_cache.dtype))
    return tuple(
        _curve(variant, card, own=(dtype, heads) == _cache_of(profile))
        for heads in _head_counts(profile)
        for dtype in types
        if (variant := _variant(profile, dtype, heads)) is not None
    )


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


def _curve(profile: Profile, card: GpuCard, own: bool) -> ContextCurve:
    dtype, kv_heads = _cache_of(profile)
    return ContextCurve(
        cache_dtype=dtype,
        kv_heads=kv_heads,
        own=own,
        points=tuple((length, _need(profile, card, length)) for length in _lengths(profile)),
        largest_context=solve(profile, card, budget_of(profile, card), "context"),
    )


def _lengths(profile: Profile) -> list[int]:
    """Four lengths an octave up to twice the profile's context, and that context itself."""
    most = min(max(2 * profile.workload.context, 2 * SHORTEST), LONGEST)
    least = max(smallest(profile, "context"), SHORTEST)
    octaves = [1 << p for p in range(SHORTEST.bit_length() - 1, most.bit_length())]
    steps = (start * quarter // 4 for start in octaves for quarter in range(4, 8))
    lengths = {length for length in steps if least <= length <= most}
    return sorted(lengths | {profile.workload.context})


def _need(profile: Profile, card: GpuCard, context: int) -> int:
    return plan(with_value(profile, "context", context), card).footprint_bytes
