"""Decode attention to what is stored as it is: plain caches, sinks, tail, the new token.

Tokens are the rows of a tile and heads its columns, so that few heads take few registers. Scores
are in base 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritter_model.ops.jit import jit

if TYPE_CHECKING:
    import triton.language as tl


@jit
def slots_of(start, within, low, slots, RING: tl.constexpr):
    """Where the tokens start + within lie in a ring; those before `low` lie anywhere in it."""
    if RING:
        first = tl.maximum(start, low)
        at = first % slots + (start + within - first)
        return tl.maximum(tl.where(at >= slots, at - slots, at), 0)
    else:
        return start + within


@jit
def nothing_yet(TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    """A maximum below every score, and the weights of no token."""
    return tl.full((COLUMNS,), -1e30, tl.float32), tl.zeros((TOKENS, COLUMNS), tl.float32)


@jit
def sum_of_weights(mass):
    """The sum of weights; above 0 for a split without tokens, whose maximum is below all others."""
    return tl.maximum(tl.sum(mass, 0), 1e-30)


@jit
def weigh(scores, top):
    """The running maximum with new scores, what older sums shrink by, and the scores' weights."""
    new = tl.maximum(top, tl.max(scores, 0))
    return new, tl.exp2(top - new), tl.exp2(scores - new[None])


@jit
def attend_to_rows(
    queries, cache, partial, sums, row, here, pair, split, splits,
    behind, low, slots, factor,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
    RING: tl.constexpr,
):  # fmt: skip
    """Keys and values that are stored as they are: a share of the visible tokens."""
    keys, values, _, _, _, _, _, _, _, _ = cache
    keys += pair.to(tl.int64) * slots * WIDTH
    values += pair.to(tl.int64) * slots * WIDTH
    d = tl.arange(0, CHANNELS)
    q = scaled_query(queries, d, here, factor, WIDTH)
    share = tl.cdiv(tl.cdiv(behind - low, TOKENS), splits) * TOKENS
    begin = low + split * share
    end = tl.minimum(begin + share, behind)
    top, mass = nothing_yet(TOKENS, COLUMNS)
    out = tl.zeros((CHANNELS, COLUMNS), tl.float32)
    for start in range(begin, end, TOKENS):
        t = tl.arange(0, TOKENS)
        at = slots_of(start, t, low, slots, RING)[:, None] * WIDTH + d[None]
        inside = (start + t < end)[:, None] & (d < WIDTH)[None]
        k = _as_16_bits(tl.load(keys + at, mask=inside, other=0))
        v = _as_16_bits(tl.load(values + at, mask=inside, other=0))
        scores = tl.dot(k, q.to(k.dtype))
        scores = tl.where((start + t < end)[:, None], scores, float("-inf"))
        top, shrink, p = weigh(scores, top)
        mass = mass * shrink[None] + p
        out = tl.dot(tl.trans(v), p.to(v.dtype), out * shrink[None])
    total = sum_of_weights(mass)
    store_split(partial, sums, row, here, d, out, top, total, WIDTH)


@jit
def scaled_query(queries, d, here, factor, WIDTH: tl.constexpr):
    """float32 [CHANNELS, COLUMNS], scaled."""
    inside = (d < WIDTH)[:, None] & here[None]
    return tl.load(queries[None] + d[:, None], mask=inside, other=0).to(tl.float32) * factor


@jit
def _as_16_bits(x):
    """What tensor cores take; fp8 (e4m3, as bytes) by its bits, which every card can."""
    if x.dtype == tl.uint8:
        size = (x & 0x7F).to(tl.int32)
        nan = ((size + 1) & 0x80) * 0xF00000  # all of float32's exponent, where size is 0x7F
        bits = ((x & 0x80).to(tl.int32) << 24) | (size << 20) | nan
        return (bits.to(tl.float32, bitcast=True) * 2.0**120).to(tl.bfloat16)
    else:
        return x


@jit
def store_split(partial, sums, row, here, d, out, top, total, WIDTH: tl.constexpr):
    """A split's output and its log-sum-exp."""
    inside = (d < WIDTH)[:, None] & here[None]
    tl.store(partial + row[None] * WIDTH + d[:, None], out / total[None], mask=inside)
    tl.store(sums + row, top + tl.log2(total), mask=here)


@jit
def attend_to_recent(
    queries, new, cache, partial, sums, row, here, pair, kv_heads,
    held, sinks, behind, low, slots, factor,
    BITS: tl.constexpr, GROUP: tl.constexpr, VALUE_GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, RING: tl.constexpr,
):  # fmt: skip
    """Sinks, the tail with its quantised values, and the new token, in the activations' type."""
    TOKENS: tl.constexpr = 32
    _, values, sink_keys, sink_values, tail, _, _, value_scale, value_minimum, _ = cache
    base = pair.to(tl.int64)
    d = tl.arange(0, CHANNELS)
    t = tl.arange(0, TOKENS)
    q = scaled_query(queries, d, here, factor, WIDTH)
    top, mass = nothing_yet(TOKENS, COLUMNS)
    out = tl.zeros((CHANNELS, COLUMNS), tl.float32)
    for start in range(0, held, TOKENS):
        inside = start + t < held
        at = base * sinks * WIDTH + (start + t)[:, None] * WIDTH + d[None]
        both = inside[:, None] & (d < WIDTH)[None]
        k = tl.load(sink_keys + at, mask=both, other=0)
        v = tl.load(sink_values + at, mask=both, other=0)
        top, mass, out = _attend_to_tile(q, k, v, inside, top, mass, out)
    if BITS != 0:
        first = tl.maximum(behind // GROUP * GROUP, low)
        for start in range(first, behind, TOKENS):
            inside = start + t < behind
            both = inside[:, None] & (d < WIDTH)[None]
            at = (base * GROUP + ((start + t) % GROUP))[:, None] * WIDTH + d[None]
            k = tl.load(tail + at, mask=both, other=0)
            slot = base * slots + slots_of(start, t, low, slots, RING)
            v = _dequantised(
                values, value_scale, value_minimum, slot, d, both, BITS, VALUE_GROUPS, WIDTH
            ).to(k.dtype)
            top, mass, out = _attend_to_tile(q, k, v, inside, top, mass, out)
    total = tl.sum(mass, 0)
    k = tl.load(new + d, mask=d < WIDTH, other=0).to(tl.float32)
    v = tl.load(new + kv_heads * WIDTH + d, mask=d < WIDTH, other=0).to(tl.float32)
    top, shrink, p = weigh(tl.sum(q * k[:, None], 0)[None], top)
    out = out * shrink[None] + p * v[:, None]
    store_split(partial, sums, row, here, d, out, top, total * shrink + tl.sum(p, 0), WIDTH)


@jit
def _attend_to_tile(q, k, v, inside, top, mass, out):
    """Attention to a few tokens in the activations' type, added to what there is."""
    scores = tl.dot(k, q.to(k.dtype), input_precision="ieee")
    scores = tl.where(inside[:, None], scores, float("-inf"))
    top, shrink, p = weigh(scores, top)
    added = tl.dot(tl.trans(v), p.to(v.dtype), out * shrink[None], input_precision="ieee")
    return top, mass * shrink[None] + p, added


@jit
def _dequantised(
    values, value_scale, value_minimum, slot, d, inside,
    BITS: tl.constexpr, VALUE_GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Values of a few tokens, element by element: float32."""
    ROW: tl.constexpr = WIDTH * BITS // 8
    byte = tl.load(values + slot[:, None] * ROW + (d % ROW)[None], mask=inside, other=0)
    code = (byte.to(tl.int32) >> (d // ROW * BITS)[None]) & (2**BITS - 1)
    at = slot[:, None] * VALUE_GROUPS + (d * VALUE_GROUPS // WIDTH)[None]
    scale = tl.load(value_scale + at, mask=inside, other=0).to(tl.float32)
    minimum = tl.load(value_minimum + at, mask=inside, other=0).to(tl.float32)
    return code.to(tl.float32) * scale + minimum
