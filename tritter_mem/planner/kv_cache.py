"""Bytes of the key-value cache: codes, scales and minima, tail, sinks, rings."""

from __future__ import annotations

from tritter_mem.config.profile import QUANTISED_KV_BITS, Profile
from tritter_mem.planner.moments import DTYPE_BYTES, ceil_div, compute_dtype, layers_by_window


def kv_cache_bytes(profile: Profile) -> int:
    """The whole cache, all layers and sequences; 0 in training.

    The specification's formula, 2 * layers * heads * head_dim * tokens * batch * bits / 8, with the
    key-value heads for the heads, and what it leaves out.
    """
    if profile.workload.mode == "training":
        return 0
    layers = layers_by_window(profile)
    return sum(count * layer_cache_bytes(profile, window) for window, count in layers.items())


def cache_slots(profile: Profile, window: int | None) -> int:
    """Tokens behind the sinks that a layer holds: the context, or a window that is shorter."""
    behind = profile.workload.context - profile.kv_cache.attention_sinks
    return max(0, behind if window is None else min(window, behind))


def layer_cache_bytes(profile: Profile, window: int | None) -> int:
    """One layer's cache for a window (None: all tokens)."""
    bits = QUANTISED_KV_BITS.get(profile.kv_cache.dtype, 0)
    slots = cache_slots(profile, window)
    sinks = 2 * profile.kv_cache.attention_sinks * _row_bytes(profile)
    if bits:
        stored = _quantised_bytes(profile, slots, bits)
    else:
        stored = 2 * slots * profile.model.head_width * DTYPE_BYTES[profile.kv_cache.dtype]
    return profile.workload.batch * profile.model.kv_heads * (stored + sinks)


def _row_bytes(profile: Profile) -> int:
    """One token's key of one head, in the activations' type."""
    return profile.model.head_width * DTYPE_BYTES[compute_dtype(profile)]


def _quantised_bytes(profile: Profile, slots: int, bits: int) -> int:
    """Keys in groups of tokens, values in groups of channels, each with a scale and a minimum.

    Keys wait for their group in a tail in the activations' type. Scales and minima are float16.
    """
    width, group = profile.model.head_width, profile.kv_cache.group_size
    behind = profile.workload.context - profile.kv_cache.attention_sinks
    groups = min(ceil_div(slots, group), behind // group)
    keys = groups * (group * width * bits // 8 + 4 * width)
    values = slots * (width * bits // 8 + 4 * (width // min(group, width)))
    return keys + values + group * _row_bytes(profile)
