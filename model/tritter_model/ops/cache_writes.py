"""Where new tokens go in the cache, for kernels: groups of keys, values, tail, sinks and rings.

Shapes: a token's channels are [planes, columns] of its bytes: with 4 bits, two planes share each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritter_model.ops.jit import jit
from tritter_model.ops.kv_codec import narrowed_to, packed_codes, scale_and_minimum

if TYPE_CHECKING:
    import triton.language as tl


@jit
def channels(WIDTH: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The channels of a token as [1, planes, columns] of its bytes, and which there are."""
    PLANES: tl.constexpr = 8 // BITS if BITS else 1
    column = tl.arange(0, BLOCK)[None, None]
    channel = tl.arange(0, PLANES)[None, :, None] * (WIDTH // PLANES) + column
    return channel, (channel >= 0) & (column < WIDTH // PLANES)


@jit
def complete_group(
    new_keys, row_stride, start, tokens, group, head, groups, tail, keys, key_scale, key_minimum,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
    GROUP: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Quantise a group of keys if the new tokens complete it and no later one takes its place.

    `new_keys` points to the first new token's key, `start` is that token's index behind the sinks
    (negative where it is a sink itself), `groups` how many the cache can hold.
    """
    end = start + tokens
    if ((group + 1) * GROUP <= end) & (group >= end // GROUP - groups):
        channel, inside = channels(WIDTH, BITS, BLOCK)
        PLANES: tl.constexpr = 8 // BITS
        low = tl.full((1, PLANES, BLOCK), float("inf"), tl.float32)
        high = tl.full((1, PLANES, BLOCK), float("-inf"), tl.float32)
        old_keys = tail + head * GROUP * WIDTH
        for first in range(0, GROUP, TOKENS):
            offset = first + tl.arange(0, TOKENS)[:, None, None]
            there = inside & (offset < GROUP)
            x = _key(new_keys, row_stride, start, old_keys, group, offset, channel, there,
                     WIDTH, GROUP)  # fmt: skip
            low = tl.minimum(low, tl.min(tl.where(there, x, float("inf")), 0)[None])
            high = tl.maximum(high, tl.max(tl.where(there, x, float("-inf")), 0)[None])
        scale, minimum = scale_and_minimum(low, high, BITS)
        place = head * groups + group % groups
        tl.store(key_scale + place * WIDTH + channel, scale, mask=inside)
        tl.store(key_minimum + place * WIDTH + channel, minimum, mask=inside)
        column = tl.arange(0, BLOCK)[None]
        for first in range(0, GROUP, TOKENS):
            offset = first + tl.arange(0, TOKENS)[:, None, None]
            there = inside & (offset < GROUP)
            x = _key(new_keys, row_stride, start, old_keys, group, offset, channel, there,
                     WIDTH, GROUP)  # fmt: skip
            codes = packed_codes(x, scale, minimum, BITS, PTX)
            row = first + tl.arange(0, TOKENS)[:, None]
            at = (place * GROUP + row) * (WIDTH // PLANES) + column
            tl.store(keys + at, codes, mask=(row < GROUP) & (column < WIDTH // PLANES))


@jit
def _key(
    new_keys, row_stride, start, old_keys, group, offset, channel, there,
    WIDTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Keys of a group in float32: those that wait in the tail, and new ones."""
    index = group * GROUP + offset
    new = there & (index >= tl.maximum(start, 0))
    row = (index - start).to(tl.int64)
    fresh = tl.load(new_keys + row * row_stride + channel, mask=new, other=0)
    waiting = tl.load(old_keys + offset * WIDTH + channel, mask=there & (new == 0), other=0)
    return tl.where(new, fresh, waiting).to(tl.float32)


@jit
def put_tokens(
    new_keys, new_values, row_stride, position, first, tokens, head, slots, sinks,
    keys, values, sink_keys, sink_values, tail, value_scale, value_minimum,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
    GROUP: tl.constexpr, PTX: tl.constexpr, VALUE_GROUPS: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Put TOKENS of the new tokens, from number `first` on, to the sinks, the tail and the ring.

    Two tokens of a chunk may belong to the same place; then the later one is written.
    """
    channel, inside = channels(WIDTH, BITS, BLOCK)
    new = first + tl.arange(0, TOKENS)
    index, left = position + new - sinks, tokens - new
    at = (new.to(tl.int64) * row_stride)[:, None, None] + channel
    there = (left > 0)[:, None, None] & inside
    k, v = (
        tl.load(new_keys + at, mask=there, other=0),
        tl.load(new_values + at, mask=there, other=0),
    )
    sink = there & (index < 0)[:, None, None]
    at = ((head * sinks + position + new) * WIDTH)[:, None, None] + channel
    tl.store(sink_keys + at, k, mask=sink)
    tl.store(sink_values + at, v, mask=sink)
    row = head * slots + index % tl.maximum(slots, 1)
    kept = (index >= 0) & (left > 0) & (left <= slots)
    if BITS:
        at = ((head * GROUP + index % GROUP) * WIDTH)[:, None, None] + channel
        waits = (index >= 0) & (left <= GROUP)
        tl.store(tail + at, k, mask=there & waits[:, None, None])
        _put_values(
            v.to(tl.float32), row, kept, channel, inside, values, value_scale, value_minimum,
            WIDTH, BLOCK, BITS, PTX, VALUE_GROUPS,
        )  # fmt: skip
    else:
        at, there = (row * WIDTH)[:, None, None] + channel, inside & kept[:, None, None]
        kind: tl.constexpr = keys.dtype.element_ty
        tl.store(keys + at, narrowed_to(k.to(tl.float32), kind, LIMIT), mask=there)
        tl.store(values + at, narrowed_to(v.to(tl.float32), kind, LIMIT), mask=there)


@jit
def _put_values(
    v, row, kept, channel, inside, values, value_scale, value_minimum,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr, PTX: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
):  # fmt: skip
    """Quantise values [tokens, planes, columns] into their rows, a group of channels at a time."""
    scales, minima = tl.full(v.shape, 1, tl.float16), tl.zeros(v.shape, tl.float16)
    for group in tl.static_range(VALUE_GROUPS):
        member = inside & (channel // (WIDTH // VALUE_GROUPS) == group)
        low = tl.min(tl.min(tl.where(member, v, float("inf")), 2), 1)
        high = tl.max(tl.max(tl.where(member, v, float("-inf")), 2), 1)
        scale, minimum = scale_and_minimum(low, high, BITS)
        tl.store(value_scale + row * VALUE_GROUPS + group, scale, mask=kept)
        tl.store(value_minimum + row * VALUE_GROUPS + group, minimum, mask=kept)
        scales = tl.where(member, scale[:, None, None], scales)
        minima = tl.where(member, minimum[:, None, None], minima)
    PACKED: tl.constexpr = WIDTH * BITS // 8
    column = tl.arange(0, BLOCK)[None]
    at = (row * PACKED)[:, None] + column
    codes = packed_codes(v, scales, minima, BITS, PTX)
    tl.store(values + at, codes, mask=kept[:, None] & (column < PACKED))
