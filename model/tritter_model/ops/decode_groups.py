"""Decode attention to quantised groups, whose codes are multiplied as their digits are.

Scales and minima are folded into what is small. Keys: q'(d) = q(d) * scale(d), and
sum q(d) * minimum(d) as a bias, anew for each group. Values: p'(t) = p(t) * scale(t), and
sum p(t) * minimum(t) added at the end. Digits of keys have an offset (`kv_digits`), which is taken
off the bias, times the q' that tensor cores are given. The half range that digits of values lack
is a part of the minima. Tiles and scores are those of `decode_rows`.
"""

# mypy: disable-error-code="assignment, var-annotated"
# Tuples that grow in unrolled loops have another type each time.

from __future__ import annotations

from typing import TYPE_CHECKING

from tritter_model.ops.decode_rows import nothing_yet, slots_of, sum_of_weights, weigh
from tritter_model.ops.jit import jit
from tritter_model.ops.kv_digits import digits, digits_of_pairs, digits_of_words

if TYPE_CHECKING:
    import triton.language as tl


@jit
def attend_to_groups(
    queries, cache, partial, sums, row, here, pair, split, splits,
    behind, low, slots, groups, factor,
    BITS: tl.constexpr, GROUP: tl.constexpr, VALUE_GROUPS: tl.constexpr, SEGMENTS: tl.constexpr,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
    BYTES: tl.constexpr, SEGMENT: tl.constexpr,
    RING: tl.constexpr, UNIT: tl.constexpr, KEYS_PTX: tl.constexpr, VALUES_PTX: tl.constexpr,
):  # fmt: skip
    """Quantised keys and values: a share of the complete groups.

    BYTES and SEGMENT are a row's bytes, and those of a part of it that lies in one value group, as
    powers of two. A value's scale and minimum are loaded a trip ahead. UNIT is how many bytes of
    values are loaded as one number. Of pairs, keys are loaded too, with two channels' scales as one
    number: they have the digits of two channels side by side, as tensor cores take them.
    """
    DIGIT: tl.constexpr = 2 if BITS == 2 else 4
    EACH: tl.constexpr = 2 if UNIT == 2 else 1
    PARTS: tl.constexpr = 8 * EACH // DIGIT
    ROW: tl.constexpr = WIDTH * BITS // 8
    TRIPS: tl.constexpr = (GROUP + TOKENS - 1) // TOKENS
    keys, _, _, _, _, key_scale, key_minimum, value_scale, value_minimum, values = cache
    base = pair.to(tl.int64)
    keys += base * groups * (GROUP * ROW // EACH)
    key_scale += base * groups * (WIDTH // EACH)
    key_minimum += base * groups * (WIDTH // EACH)
    values += base * slots * (ROW // UNIT)
    value_scale += base * slots * VALUE_GROUPS
    value_minimum += base * slots * VALUE_GROUPS
    t = tl.arange(0, TOKENS)
    q = _query_parts(queries, here, factor, BITS, ROW, BYTES, EACH)
    first = low // GROUP * TRIPS
    last = behind // GROUP * TRIPS
    share = tl.cdiv(tl.maximum(last - first, 0), splits)
    begin = first + split * share
    end = tl.minimum(begin + share, last)
    top, mass = nothing_yet(TOKENS, COLUMNS)
    minima = ()
    for _ in tl.static_range(VALUE_GROUPS):
        minima += (tl.zeros((TOKENS, COLUMNS), tl.float32),)
    outs = ()
    for _ in tl.static_range(PARTS * SEGMENTS):
        outs += (tl.zeros((SEGMENT // EACH, COLUMNS), tl.float32),)
    next_scales = _of_values(
        value_scale, value_minimum, begin, end, low, slots,
        GROUP, VALUE_GROUPS, TOKENS, TRIPS, RING,
    )  # fmt: skip
    for trip in range(begin, end):
        scales = next_scales
        next_scales = _of_values(
            value_scale, value_minimum, trip + 1, end, low, slots,
            GROUP, VALUE_GROUPS, TOKENS, TRIPS, RING,
        )  # fmt: skip
        group = trip // TRIPS
        within = trip % TRIPS * TOKENS + t
        inside = (within < GROUP) if GROUP % TOKENS != 0 else None
        place = group % groups if RING else group

        scores = _scores_of_group(
            q, keys, key_scale, key_minimum, place * GROUP, place * WIDTH, within, inside,
            BITS, ROW, BYTES, EACH, KEYS_PTX,
        )  # fmt: skip
        if inside is not None:
            scores = tl.where(inside[:, None], scores, float("-inf"))
        if RING:
            scores = tl.where((group * GROUP + within >= low)[:, None], scores, float("-inf"))
        top, shrink, p = weigh(scores, top)
        mass = mass * shrink[None] + p

        slot = slots_of(group * GROUP, within, low, slots, RING)
        minima, outs = _mix_values(
            p, shrink, scales, minima, outs, values, slot, inside,
            BITS, VALUE_GROUPS, SEGMENTS, WIDTH, SEGMENT, UNIT, VALUES_PTX,
        )  # fmt: skip
    total = sum_of_weights(mass)
    _store_parts(
        partial, row, here, outs, minima, total,
        BITS, VALUE_GROUPS, SEGMENTS, WIDTH, SEGMENT, EACH,
    )  # fmt: skip
    tl.store(sums + row, top + tl.log2(total), mask=here)


@jit
def _store_parts(
    partial, row, here, outs, minima, total,
    BITS: tl.constexpr, VALUE_GROUPS: tl.constexpr, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr,
    SEGMENT: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """A split's output, from what each digit of each segment came to."""
    DIGIT: tl.constexpr = 2 if BITS == 2 else 4
    PARTS: tl.constexpr = 8 * EACH // DIGIT
    HELD: tl.constexpr = WIDTH * BITS // 8 // SEGMENTS
    c = EACH * tl.arange(0, SEGMENT // EACH)
    inside = (c < HELD)[:, None] & here[None]
    for j in tl.static_range(SEGMENTS):
        for i in tl.static_range(PARTS):
            if i * DIGIT % BITS == 0:
                out = outs[j * PARTS + i]
                if BITS == 8:
                    out += 16 * outs[j * PARTS + i + 1]
                minimum = minima[
                    (i * DIGIT % 8 // BITS * SEGMENTS + j) * HELD * VALUE_GROUPS // WIDTH
                ]
                out += tl.sum(minimum, 0)[None]
                channel = (i * DIGIT % 8 // BITS * SEGMENTS + j) * HELD + i * DIGIT // 8
                at = row[None] * WIDTH + channel + c[:, None]
                tl.store(partial + at, out / total[None], mask=inside)


@jit
def _mix_values(
    p, shrink, scales, minima, outs, values, slot, inside,
    BITS: tl.constexpr, VALUE_GROUPS: tl.constexpr, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr,
    SEGMENT: tl.constexpr, UNIT: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Add a trip's values, weighed, to what each digit of each segment has come to."""
    DIGIT: tl.constexpr = 2 if BITS == 2 else 4
    CENTRE: tl.constexpr = 136 if BITS == 8 else 2 ** (BITS - 1)
    PARTS: tl.constexpr = (16 if UNIT == 2 else 8) // DIGIT
    ROW: tl.constexpr = WIDTH * BITS // 8
    HELD: tl.constexpr = ROW // SEGMENTS
    weights = ()
    more_minima = ()
    for i in tl.static_range(VALUE_GROUPS):
        scale = scales[2 * i].to(tl.float32)
        minimum = scales[2 * i + 1].to(tl.float32)
        weights += ((p * scale[:, None]).to(tl.bfloat16),)
        more_minima += (minima[i] * shrink[None] + p * (minimum + CENTRE * scale)[:, None],)
    more = ()
    for j in tl.static_range(SEGMENTS):
        parts = _value_digits(values, slot, inside, j * HELD, ROW, HELD, SEGMENT, DIGIT, UNIT, PTX)
        for i in tl.static_range(PARTS):
            weight = weights[(i * DIGIT % 8 // BITS * SEGMENTS + j) * HELD * VALUE_GROUPS // WIDTH]
            out = outs[j * PARTS + i] * shrink[None]
            part = parts[i] if UNIT == 2 else tl.trans(parts[i])
            more += (tl.dot(part, weight, out),)
    return more_minima, more


@jit
def _query_parts(
    queries, here, factor,
    BITS: tl.constexpr, ROW: tl.constexpr, BYTES: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """What each digit is multiplied by: float32 [BYTES / EACH, COLUMNS] each, scaled."""
    DIGIT: tl.constexpr = 2 if BITS == 2 else 4
    d = EACH * tl.arange(0, BYTES // EACH)
    inside = (d < ROW)[:, None] & here[None]
    parts = ()
    for i in tl.static_range(8 * EACH // DIGIT):
        channel = i * DIGIT % 8 // BITS * ROW + i * DIGIT // 8
        at = queries[None] + (channel + d)[:, None]
        part = tl.load(at, mask=inside, other=0).to(tl.float32)
        parts += (part * (factor * 2 ** (i * DIGIT % BITS)),)
    return parts


@jit
def _scores_of_group(
    q, keys, key_scale, key_minimum, first_row, first_scale, within, inside,
    BITS: tl.constexpr, ROW: tl.constexpr, BYTES: tl.constexpr, EACH: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Scores of some tokens of one group of quantised keys: [TOKENS, COLUMNS]."""
    DIGIT: tl.constexpr = 2 if BITS == 2 else 4
    CUT: tl.constexpr = BYTES != ROW
    c = tl.arange(0, BYTES // EACH)
    here = EACH * c < ROW
    packed = _rows(
        keys + (first_row + within)[:, None] * (ROW // EACH) + c[None], inside, here, CUT
    )
    if EACH == 2:
        parts = digits_of_pairs(packed, DIGIT, PTX, True)
    else:
        parts = digits(packed, DIGIT, PTX, True)
    bias = tl.zeros((BYTES // EACH, q[0].shape[1]), tl.float32)
    scores = tl.zeros((within.shape[0], q[0].shape[1]), tl.float32)
    for plane in tl.static_range(8 // BITS):
        at = (first_scale + plane * ROW) // EACH + c
        scales = _columns(key_scale + at, here, CUT)
        minima = _columns(key_minimum + at, here, CUT)
        for byte in tl.static_range(EACH):
            scale = _half_of(scales, byte, EACH)
            minimum = _half_of(minima, byte, EACH)
            for i in tl.static_range(
                (8 * byte + BITS * plane) // DIGIT, (8 * byte + BITS * (plane + 1)) // DIGIT
            ):
                if i * DIGIT % BITS == 0:
                    bias += q[i] * minimum[:, None]
                weight = (q[i] * scale[:, None]).to(tl.bfloat16)
                bias -= 128 * weight.to(tl.float32)
                scores = tl.dot(parts[i], weight, scores)
    return scores + tl.sum(bias, 0)[None]


@jit
def _half_of(numbers, byte: tl.constexpr, EACH: tl.constexpr):
    """float32 of one of two float16 numbers side by side in an int32; of float16 numbers, each."""
    if EACH == 2:
        half = (numbers >> (16 * byte)).to(tl.int16)
        return half.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return numbers.to(tl.float32)


@jit
def _columns(at, columns, CUT: tl.constexpr):
    """Numbers, one a channel or one for two."""
    if CUT:
        return tl.load(at, mask=columns, other=0)
    else:
        return tl.load(at)


@jit
def _rows(at, inside, columns, CUT: tl.constexpr):
    """Bytes of a tile, with masks only where there are edges."""
    if CUT:
        mask = columns[None] if inside is None else columns[None] & inside[:, None]
        return tl.load(at, mask=mask, other=0)
    elif inside is not None:
        return tl.load(at, mask=inside[:, None], other=0)
    else:
        return tl.load(at)


@jit
def _pairs(at, inside, columns, CUT: tl.constexpr):
    """As `_rows`, of a tile [columns, tokens]."""
    if CUT:
        mask = columns[:, None] if inside is None else columns[:, None] & inside[None]
        return tl.load(at, mask=mask, other=0)
    elif inside is not None:
        return tl.load(at, mask=inside[None], other=0)
    else:
        return tl.load(at)


@jit
def _of_values(
    scale, minimum, trip, end, low, slots,
    GROUP: tl.constexpr, VALUE_GROUPS: tl.constexpr, TOKENS: tl.constexpr, TRIPS: tl.constexpr,
    RING: tl.constexpr,
):  # fmt: skip
    """Scale and minimum of a trip's values, one after the other for each group of channels."""
    within = trip % TRIPS * TOKENS + tl.arange(0, TOKENS)
    slot = slots_of(trip // TRIPS * GROUP, within, low, slots, RING)
    inside = (within < GROUP) & (trip < end)
    found = ()
    for i in tl.static_range(VALUE_GROUPS):
        at = slot * VALUE_GROUPS + i
        found += (tl.load(scale + at, mask=inside, other=0),)
        found += (tl.load(minimum + at, mask=inside, other=0),)
    return found


@jit
def _value_digits(
    values, slot, inside, start,
    ROW: tl.constexpr, HELD: tl.constexpr, SEGMENT: tl.constexpr,
    DIGIT: tl.constexpr, UNIT: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """The digits of some bytes of each row of values: the HELD ones from `start` on.

    Those of pairs lie as a product takes them: [channels, tokens].
    """
    c = tl.arange(0, SEGMENT // UNIT)
    if UNIT == 2:
        at = values + slot[None] * (ROW // 2) + (start // 2 + c)[:, None]
        packed = _pairs(at, inside, c < HELD // 2, SEGMENT != HELD)
        return digits_of_pairs(packed, DIGIT, PTX, False)
    else:
        at = values + slot[:, None] * (ROW // UNIT) + start // UNIT + c[None]
        packed = _rows(at, inside, c < HELD // UNIT, SEGMENT != HELD)
        if UNIT == 4:
            return digits_of_words(packed, DIGIT, PTX)
        else:
            return digits(packed, DIGIT, PTX, False)
