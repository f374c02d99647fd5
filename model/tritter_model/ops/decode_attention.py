"""Attention of one new token a sequence over the cache.

The new token's own key and value are taken from `qkv`, in full precision, whether or not the cache
holds them already. The position is read on the device, so that a CUDA graph of a decode step can be
replayed at every position.

The kernel splits the cache among programs, as many as the card has room for, whatever is in it:
loops end where the position says. It needs scratch that the reference does not: the partial outputs
of the splits, and their log-sum-exp. The wrapper allocates it.

Shapes: B sequences; A query heads, G key-value heads, D their width; `qkv` is [B, A + 2G, D] with
queries and keys already rotated.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritter_model.kv_cache import LayerCache
from tritter_model.ops.cache_history import attend
from tritter_model.ops.checks import expect_contiguous
from tritter_model.ops.decode_groups import attend_to_groups
from tritter_model.ops.decode_rows import attend_to_recent, attend_to_rows
from tritter_model.ops.dependent import dependent, wait_for_the_launch_ahead
from tritter_model.ops.jit import block, capability, interpreted, jit
from tritter_model.ops.kv_digits import digits_of_pairs_ptx, digits_ptx
from tritter_model.ops.registry import operator, scratch
from tritter_model.ops.rows import QuantisedRows, quantise_into, store_quantised
from tritter_model.ops.tuning import splits_for_the_card, tuning

if TYPE_CHECKING:
    import triton.language as tl

SPLIT_TOKENS = 256
TILE_BYTES = 8192
"""Of keys or of values, in a program's tile."""
MERGED_CHANNELS, MERGED_SPLITS = 32, 128
"""A program's tile of partial outputs: narrow, so that many merge a head and loads overlap."""
PAIRED_BYTES = 64
"""Of a value, the fewest to be read by pairs: with fewer, most warps would repeat others' work."""


def decode_attention(
    qkv: Tensor, cache: LayerCache, position: Tensor, length: int, heads: int, multiprocessors: int
) -> Tensor:
    """Attend to the cached tokens before `position` and to the new ones: [B, A * D].

    Args:
        qkv: the new tokens' queries, keys and values.
        cache: this layer's cache, which holds the tokens before `position`.
        position: int32 [1], absolute position of the new tokens.
        length: the same number on the host, for those who count operations where there is no
            device to ask; nothing is computed with it.
        heads: A.
        multiprocessors: of the card; attention is split so as to use them all.
    """
    out = qkv.new_empty((qkv.shape[0], heads * qkv.shape[2]))
    partial = partial_outputs(qkv, cache, heads, multiprocessors)
    stored = cache.tensors(), cache.layout()
    _decode_attention(qkv, *stored, length, heads, position, partial, out, [])
    return out


def decode_attention_rows(
    qkv: Tensor, cache: LayerCache, position: Tensor, length: int, heads: int, multiprocessors: int
) -> QuantisedRows:
    """What `quantise_rows` makes of `decode_attention`, bit for bit, in one launch less.

    The program that merges the last head of a sequence quantises its row. Arguments are those of
    `decode_attention`.
    """
    out = scratch((qkv.shape[0], heads * qkv.shape[2]), qkv, qkv.dtype)
    partial = partial_outputs(qkv, cache, heads, multiprocessors)
    merged = scratch((qkv.shape[0],), qkv, torch.int32)
    rows, stored = QuantisedRows.empty(out, out.shape[1]), (cache.tensors(), cache.layout())
    _decode_attention(qkv, *stored, length, heads, position, partial, out, [merged, *rows])
    return rows


def decode_splits(batch_kv_heads: int, slots: int, multiprocessors: int) -> int:
    """Parts of the cache that one token's attention reads side by side.

    Enough for so many programs a multiprocessor (`Tuning.decode_programs`), but none below
    `SPLIT_TOKENS` tokens; and one more for the tail, the sinks and the new token.
    """
    wanted = splits_for_the_card(batch_kv_heads, multiprocessors)
    return max(1, min(wanted, -(-slots // SPLIT_TOKENS))) + 1


def partial_outputs(
    qkv: Tensor, cache: LayerCache, heads: int, multiprocessors: int
) -> list[Tensor]:
    """Scratch for the splits: float32 outputs [splits, B, A, D], log-sum-exp [splits, B, A]."""
    splits = decode_splits(cache.batch * cache.kv_heads, cache.slots, multiprocessors)
    shape = (splits, qkv.shape[0], heads)
    return [
        scratch((*shape, qkv.shape[2]), qkv, torch.float32),
        scratch(shape, qkv, torch.float32),
    ]


@operator(
    "decode_attention(Tensor qkv, Tensor[] cache, int[] layout, int length, int heads,"
    " Tensor position, Tensor(a!)[] partial, Tensor(b!) out, Tensor(c!)[] rows) -> ()"
)
def _decode_attention(
    qkv: Tensor, cache: list[Tensor], layout: list[int], length: int, heads: int,
    position: Tensor, partial: list[Tensor], out: Tensor, rows: list[Tensor],
) -> None:  # fmt: skip
    del length, partial
    attend(qkv, LayerCache.of(cache, layout), int(position), heads, out)
    if rows:
        quantise_into(out, *rows[1:])


@_decode_attention.kernel
def _launch(
    qkv: Tensor, cache: list[Tensor], layout: list[int], length: int, heads: int,
    position: Tensor, partial: list[Tensor], out: Tensor, rows: list[Tensor],
) -> None:  # fmt: skip
    del length
    layer = LayerCache.of(cache, layout)
    expect_contiguous("queries, keys and values", qkv)
    form, width = _form(layer, heads), qkv.shape[2]
    splits = partial[0].shape[0]
    pairs, programs = layer.batch * layer.kv_heads, -(-form["HEADS"] // form["COLUMNS"])
    merged, *quantised = rows or (None,) * 4
    _decode_split_kernel[(pairs * programs, splits)](
        qkv, position, _as_read(layer, form), *partial, merged,
        layer.kv_heads, splits, layer.sinks, layer.window, max(layer.slots, 1), layer.groups,
        math.log2(math.e) / math.sqrt(width), **form, **dependent(),
    )  # fmt: skip
    columns, channels = block(heads * width) if rows else 0, min(block(width), MERGED_CHANNELS)
    _decode_merge_kernel[(layer.batch * heads, -(-width // channels))](
        *partial, out, merged, *quantised, layer.batch * heads, heads, splits,
        WIDTH=width, CHANNELS=channels, SPLITS=min(block(splits), MERGED_SPLITS), ROW=columns,
        PTX=not interpreted(), num_warps=min(max(4, columns // 1024), 16), **dependent(),
    )  # fmt: skip


def _as_read(layer: LayerCache, form: dict[str, Any]) -> tuple[Tensor, ...]:
    """The cache's tensors, fp8 as bytes; then its values again, in words or pairs of bytes.

    By pairs, keys are read so too, and their scales and minima two at a time.
    """
    tensors = layer.tensors()
    if layer.keys.dtype == torch.float8_e4m3fn:
        tensors[:2] = [layer.keys.view(torch.uint8), layer.values.view(torch.uint8)]
    if not layer.bits:
        return (*tensors, tensors[1])
    kind = {4: torch.int32, 2: torch.int16, 1: torch.uint8}[form["UNIT"]]
    values = tensors[1].view(kind)
    if form["UNIT"] == 2:
        tensors[0] = tensors[0].view(kind)
        tensors[5:7] = [tensor.view(torch.int32) for tensor in tensors[5:7]]
    return (*tensors, values)


def _digits_ptx(digit: int, unit: int, *, raw: bool) -> str | None:
    """Of numbers of so many bytes."""
    return digits_of_pairs_ptx(digit, raw) if unit == 2 else digits_ptx(digit, unit == 4, raw)


def _warps(layer: LayerCache, unit: int) -> int:
    if layer.sink_values.dtype == torch.float32:
        return 8
    return tuning().decode_warps if unit == 2 and capability() in (0, 90) else 4


def _form(layer: LayerCache, heads: int) -> dict[str, Any]:
    """What the kernel is compiled for. A tile has `TILE_BYTES`, and no more tokens than a group."""
    width, heads_each = layer.sink_values.shape[3], heads // layer.kv_heads
    row = width * layer.bits // 8 if layer.bits else width * layer.keys.element_size()
    segment = math.gcd(row, layer.value_group) if layer.bits else row
    columns = min(32, max(8, block(heads_each)))
    tokens = min(128, TILE_BYTES // block(row)) if columns <= 16 else 32
    digit = 2 if layer.bits == 2 else 4
    unit = 4 if segment % 4 == 0 else 1
    if layer.bits and tuning().decode_pairs and segment % 2 == 0 and segment >= PAIRED_BYTES:
        unit = 2
    return {
        "BITS": layer.bits,
        "GROUP": layer.group,
        "VALUE_GROUPS": layer.value_scale.shape[3] if layer.bits else 1,
        "SEGMENTS": row // segment,
        "WIDTH": width,
        "HEADS": heads_each,
        "COLUMNS": columns,
        "TOKENS": max(16, min(tokens, block(layer.group) if layer.bits else tokens)),
        "CHANNELS": max(16, block(width)),
        "BYTES": max(16, block(row)),
        "SEGMENT": block(segment),
        "RING": layer.window > 0,
        "UNIT": unit,
        "KEYS_PTX": _digits_ptx(digit, 2 if unit == 2 else 1, raw=True),
        "VALUES_PTX": _digits_ptx(digit, unit, raw=False),
        "num_warps": _warps(layer, unit),
        "num_stages": 3,
    }


@jit
def _decode_split_kernel(
    qkv, position, cache, partial, sums, merged,
    kv_heads, splits, sinks, window, slots, groups, factor,
    BITS: tl.constexpr, GROUP: tl.constexpr, VALUE_GROUPS: tl.constexpr, SEGMENTS: tl.constexpr,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr, BYTES: tl.constexpr, SEGMENT: tl.constexpr,
    RING: tl.constexpr, UNIT: tl.constexpr, KEYS_PTX: tl.constexpr, VALUES_PTX: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The last split takes sinks, tail and the new token, the others a share of the rest each.

    qkv: float [B, A + 2G, D]. position: int32 [1]. cache: the tensors of `LayerCache`, then its
    values in numbers of UNIT bytes. partial: float32 [splits, B, A, D]. sums: float32
    [splits, B, A], log-sum-exp in base 2. merged: int32 [B], set to 0 for the merge, or None.
    """
    wait_for_the_launch_ahead(DEPENDENT)
    PROGRAMS: tl.constexpr = (HEADS + COLUMNS - 1) // COLUMNS
    pair = tl.program_id(0) // PROGRAMS
    head = tl.program_id(0) % PROGRAMS * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    if merged is not None:  # noqa: SIM102  (the second condition is not known to the compiler)
        if (split == 0) & (tl.program_id(0) % (kv_heads * PROGRAMS) == 0):
            tl.store(merged + pair // kv_heads, 0)
    sequence = qkv + (pair // kv_heads).to(tl.int64) * (kv_heads * (HEADS + 2) * WIDTH)
    queries = sequence + (pair % kv_heads * HEADS + head) * WIDTH
    row = (split * (tl.num_programs(0) // PROGRAMS) + pair) * HEADS + head
    here = head < HEADS
    held = tl.load(position)
    behind = tl.maximum(held - sinks, 0)
    low = tl.maximum(behind - window + 1, 0) if RING else 0
    if split == splits - 1:
        new = sequence + (kv_heads * HEADS + pair % kv_heads) * WIDTH
        attend_to_recent(
            queries, new, cache, partial, sums, row, here, pair, kv_heads,
            tl.minimum(held, sinks), sinks, behind, low, slots, factor,
            BITS, GROUP, VALUE_GROUPS, WIDTH, COLUMNS, CHANNELS, RING,
        )  # fmt: skip
    elif BITS == 0:
        attend_to_rows(
            queries, cache, partial, sums, row, here, pair, split, splits - 1,
            behind, low, slots, factor, WIDTH, COLUMNS, TOKENS, CHANNELS, RING,
        )  # fmt: skip
    else:
        attend_to_groups(
            queries, cache, partial, sums, row, here, pair, split, splits - 1,
            behind, low, slots, groups, factor,
            BITS, GROUP, VALUE_GROUPS, SEGMENTS, WIDTH, COLUMNS, TOKENS, BYTES, SEGMENT,
            RING, UNIT, KEYS_PTX, VALUES_PTX,
        )  # fmt: skip


@jit
def _decode_merge_kernel(
    partial, sums, out, merged, codes, scale, total, rows, heads, splits,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr, ROW: tl.constexpr,
    PTX: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """A program puts the splits of some channels of a head together, weighed by log-sum-exp.

    Where the result is to be quantised, the program that counts the last ones of a sequence does
    it, from memory: the count orders its loads behind the other programs' stores.

    partial: float32 [splits, B, A, D]. sums: float32 [splits, B, A]. out: float [B, A * D].
    merged: int32 [B], zeros, or None. codes: int8 [B, A * D]. scale: float32 [B]. total: int32 [B].
    """
    wait_for_the_launch_ahead(DEPENDENT)
    row = tl.program_id(0)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    s = tl.arange(0, SPLITS)
    mass = tl.zeros((SPLITS,), tl.float32)
    top = tl.full((SPLITS,), -1e30, tl.float32)
    result = tl.zeros((SPLITS, CHANNELS), tl.float32)
    for start in range(0, splits, SPLITS):
        at = (start + s) * rows + row
        inside = start + s < splits
        share = tl.load(sums + at, mask=inside, other=float("-inf"))
        both = inside[:, None] & (d < WIDTH)[None]
        part = tl.load(partial + at[:, None] * WIDTH + d[None], mask=both, other=0)
        higher = tl.maximum(top, share)
        weight = tl.exp2(share - higher)
        shrink = tl.exp2(top - higher)
        part = tl.where((weight > 0)[:, None], part, 0.0)  # a split of no tokens left it unwritten
        result = result * shrink[:, None] + part * weight[:, None]
        mass = mass * shrink + weight
        top = higher
    weight = tl.exp2(top - tl.max(top, 0))
    mixed = tl.sum(result * weight[:, None], 0) / tl.sum(mass * weight, 0)
    tl.store(out + row * WIDTH + d, mixed.to(out.dtype.element_ty), mask=d < WIDTH)
    if merged is not None:
        tl.debug_barrier()  # one thread counts, when all have stored
        sequence = row // heads
        before = tl.atomic_add(merged + sequence, 1, sem="acq_rel", scope="gpu")
        if before == heads * tl.num_programs(1) - 1:
            column = tl.arange(0, ROW)
            width = heads * WIDTH
            value = tl.load(
                out + sequence * width + column, mask=column < width, other=0, cache_modifier=".cg"
            )
            store_quantised(value, sequence.to(tl.int64), column, width, codes, scale, total, PTX)
