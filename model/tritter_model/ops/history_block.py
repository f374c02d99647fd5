"""A block of the cached tokens, expanded to the activations' type for attention's products.

Keys that wait in the tail are copied. The sinks are part of no block: they are read in place.

Shapes: B batch, G key-value heads, D their width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritter_model.kv_cache import LayerCache
from tritter_model.ops.jit import block, jit

if TYPE_CHECKING:
    import triton.language as tl


def expand_history(cache: LayerCache, tokens: range, position: int, out: Tensor) -> None:
    """Launch the kernel that writes cached tokens to `out`.

    Args:
        cache: the layer's cache.
        tokens: absolute positions, behind the sinks and before `position`.
        position: number of tokens that the cache holds.
        out: keys and values [2, B, G, rows, D]; rows are at least the tokens.
    """
    width, first = out.shape[4], tokens.start - cache.sinks
    packed, together = width * (cache.bits or 8) // 8, math.gcd(cache.group, 32)
    programs = -(-(first + len(tokens)) // together) - first // together
    _expand_history_kernel[(programs, cache.batch * cache.kv_heads)](
        *map(_as_bytes, (cache.keys, cache.values)), *cache.tensors()[4:], out, out[1],
        first, len(tokens), (position - cache.sinks) // cache.group * cache.group,
        cache.keys.shape[2], cache.slots, max(cache.groups, 1), out.shape[3],
        BITS=cache.bits, FLOAT8=cache.keys.dtype == torch.float8_e4m3fn, GROUP=cache.group,
        VALUE_GROUP=cache.value_group if cache.bits else width,
        WIDTH=width, PACKED=packed, COLUMNS=block(packed), TOKENS=together,
        num_warps=8 if block(packed) * together > 2048 else 4,
    )  # fmt: skip


def _as_bytes(stored: Tensor) -> Tensor:
    """Eight-bit floats as they lie in memory: not every card converts them by itself."""
    return stored.view(torch.uint8) if stored.dtype == torch.float8_e4m3fn else stored


@jit(do_not_specialize=("first", "count", "complete"))
def _expand_history_kernel(
    keys, values, tail, key_scale, key_minimum, value_scale, value_minimum, out_keys, out_values,
    first, count, complete, key_rows, slots, groups, out_rows,
    BITS: tl.constexpr, FLOAT8: tl.constexpr, GROUP: tl.constexpr, VALUE_GROUP: tl.constexpr,
    WIDTH: tl.constexpr, PACKED: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """A program takes some tokens of one group of keys, so that they share each channel's scale.

    keys, values, tail, scales and minima: as in `LayerCache`, fp8 as uint8. out_keys and
    out_values: float [B, G, out_rows, D].
    """
    head = tl.program_id(1).to(tl.int64)
    start = (first // TOKENS + tl.program_id(0)) * TOKENS
    index = start + tl.arange(0, TOKENS)
    byte = tl.arange(0, COLUMNS)[None]
    inside = ((index >= first) & (index < first + count))[:, None] & (byte < PACKED)
    slot = (head * slots + index % slots)[:, None]
    to = (head * out_rows + index - first)[:, None] * WIDTH + byte
    if BITS == 0:
        _copy(values + slot * PACKED + byte, out_values + to, inside, FLOAT8)
        _copy(keys + slot * PACKED + byte, out_keys + to, inside, FLOAT8)
    else:
        SCALES: tl.constexpr = WIDTH // VALUE_GROUP
        packed = tl.load(values + slot * PACKED + byte, mask=inside, other=0)
        for plane in tl.static_range(8 // BITS):
            at = slot * SCALES + (plane * PACKED + byte) // VALUE_GROUP
            value = _decoded(packed, plane, value_scale + at, value_minimum + at, inside, BITS)
            _write(out_values + to + plane * PACKED, value, inside)
        if start < complete:
            group = start // GROUP % groups
            place = (head * key_rows + group * GROUP + index % GROUP)[:, None] * PACKED + byte
            packed_keys = tl.load(keys + place, mask=inside, other=0)
            for plane in tl.static_range(8 // BITS):
                of = (head * groups + group) * WIDTH + plane * PACKED + byte
                key = _decoded(
                    packed_keys, plane, key_scale + of, key_minimum + of, byte < PACKED, BITS
                )
                _write(out_keys + to + plane * PACKED, key, inside)
        else:
            waiting = tail + (head * GROUP + index % GROUP)[:, None] * WIDTH + byte
            for plane in tl.static_range(8 // BITS):
                _copy(waiting + plane * PACKED, out_keys + to + plane * PACKED, inside, False)


@jit
def _decoded(packed, plane, scale, minimum, inside, BITS: tl.constexpr):
    """float32 of one plane of packed codes; scales and minima are where the pointers say."""
    code = ((packed.to(tl.int32) >> (BITS * plane)) & (2**BITS - 1)).to(tl.float32)
    step = tl.load(scale, mask=inside, other=0).to(tl.float32)
    return code * step + tl.load(minimum, mask=inside, other=0).to(tl.float32)


@jit
def _write(to, value, inside):
    tl.store(to, value.to(to.dtype.element_ty), mask=inside)


@jit
def _copy(source, to, inside, FLOAT8: tl.constexpr):
    """Copy floats into another type.

    Those of 8 bits (e4m3fn) go through float16, whose bits begin as theirs; its exponent has
    another bias, which 2**8 makes up for.
    """
    stored = tl.load(source, mask=inside, other=0)
    if FLOAT8:
        bits = stored.to(tl.int16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        wide = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        _write(to, tl.where((bits & 0x7F) == 0x7F, float("nan"), wide), inside)
    else:
        _write(to, stored.to(tl.float32), inside)
