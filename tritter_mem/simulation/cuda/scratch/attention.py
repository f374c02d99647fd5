"""What attention kernels need beside their results.

Flash attention: `flash_attn/flash_api.cpp`. Efficient attention: `attention_backward.cu` and
`mem_eff_attention/kernel_backward.h`, with the kernels of capability 8.0 and newer whose blocks fit
the shared memory of an 8.0 or 9.0; on smaller ones half types of heads over 64 take others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from typing import Any, NamedTuple

from torch import Tensor, bfloat16, float16

from tritter_mem.config.cards import GpuCard

_FLOAT_BYTES = 4
_HALF = (float16, bfloat16)
_FLASH_ROWS = 128
_FLASH_QUERIES = 64
_MOST_SPLITS = 128
_FILLED = 0.8
_GOOD_ENOUGH = 0.85
_LOCK_AND_COUNTER = 16
_SPLIT_ROWS = 200
_ONE_PASS_WIDTH = 128


def _flash_forward(
    card: GpuCard, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0,
    *rest: Any, **more: Any,
) -> Iterator[int]:  # fmt: skip
    """Queries [B, H, Q, D], keys [B, G, K, D]: `set_params_splitkv`."""
    batch, heads, queries, width = query.shape
    if dropout:
        return
    keys_a_block = 256 if width <= 64 else 128 if width <= 128 else 64
    rows = batch * heads
    if queries == 1 and heads > key.shape[1]:  # heads of a group are taken for queries
        blocks = batch * key.shape[1] * _up(heads // key.shape[1], _FLASH_QUERIES)
    else:
        blocks = rows * _up(queries, _FLASH_QUERIES)
    parts = _splits(blocks, 2 * card.multiprocessors, _up(key.shape[2], keys_a_block))
    if parts > 1:
        yield parts * rows * queries * _FLOAT_BYTES
        yield parts * rows * queries * _flash_width(width) * _FLOAT_BYTES


def _splits(blocks: int, at_once: int, key_blocks: int) -> int:
    """Parts of the keys, the fewest that fill the card nearly as well: `num_splits_heuristic`."""
    if blocks >= _FILLED * at_once:
        return 1
    filled = {}
    for parts in range(1, min(_MOST_SPLITS, at_once, key_blocks) + 1):
        if parts == 1 or _up(key_blocks, parts) != _up(key_blocks, parts - 1):
            waves = blocks * parts / at_once
            filled[parts] = waves / ceil(waves)
    return next(p for p, full in filled.items() if full >= _GOOD_ENOUGH * max(filled.values()))


def _flash_backward(
    card: GpuCard, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor,
    *rest: Any, **more: Any,
) -> Iterator[int]:  # fmt: skip
    """Queries [B, H, Q, D], keys [B, G, K, D]; Q in whole blocks of 128: `mha_bwd`."""
    batch, heads, queries, width = query.shape
    for tensor in (grad, out):
        if not tensor.transpose(1, 2).is_contiguous():
            yield tensor.numel() * tensor.element_size()
    rows = batch * heads * _whole(queries, _FLASH_ROWS)
    yield rows * _FLOAT_BYTES
    yield rows * _flash_width(width) * _FLOAT_BYTES
    if key.shape[1] != heads:
        expanded = batch * heads * key.shape[2] * width * key.element_size()
        yield from (expanded, expanded)


def _flash_width(width: int) -> int:
    return _whole(width, 32) if width <= 128 else _whole(width, 64)


class Blocks(NamedTuple):
    """Of an efficient backward kernel: queries, keys, and columns of the queries' gradient."""

    queries: int
    keys: int
    columns: int
    sums_keys: bool = False


def _efficient_blocks(query: Tensor, width: int) -> Blocks:
    if width <= 64:
        return Blocks(64, 64, 64)
    if query.dtype not in _HALF:
        return Blocks(128, 64, 64)
    if width <= _ONE_PASS_WIDTH:
        return Blocks(128, 128, 128)
    return Blocks(128, 64, 64, sums_keys=True)


def _efficient_forward(
    card: GpuCard, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any
) -> Iterator[int]:
    """Queries [B, H, Q, D], values [B, H, K, E]."""
    if query.dtype in _HALF and value.shape[-1] > _ONE_PASS_WIDTH:
        output = query.numel() // query.shape[-1] * value.shape[-1] * _FLOAT_BYTES
        yield from (output, -output)


def _efficient_backward(
    card: GpuCard, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any,
    **more: Any,
) -> Iterator[int]:  # fmt: skip
    """Queries [B, H, Q, D], values [B, G, K, E]; gradients for every head where G is less."""
    batch, heads, queries, width = query.shape
    if key.shape[1] < heads:
        yield from (tensor.nbytes // tensor.shape[1] * heads for tensor in (key, value))
    rows = batch * heads
    delta = rows * queries * _FLOAT_BYTES
    if query.dtype not in _HALF:  # the kernel leaves the sums over output times gradient outside
        product = grad.numel() * _FLOAT_BYTES
        yield from (product, delta, delta, -delta, -product)
    else:
        yield delta
    blocks = _efficient_blocks(query, max(width, value.shape[-1]))
    tile = blocks.queries * blocks.columns * _FLOAT_BYTES + _LOCK_AND_COUNTER
    tiles = _up(queries, blocks.queries) * _up(width, blocks.columns) * tile
    yield rows * (tiles + _key_sums(blocks, rows, key, value))


def _key_sums(blocks: Blocks, rows: int, key: Tensor, value: Tensor) -> int:
    """Bytes of a head's gradients of keys and values, each in parts."""
    if not blocks.sums_keys:
        return 0
    parts = max(1, min(_up(key.shape[2], blocks.keys), _SPLIT_ROWS // rows))
    widths = (_whole(tensor.shape[-1], blocks.queries) for tensor in (key, value))
    return parts * blocks.keys * sum(widths) * _FLOAT_BYTES


def _up(count: int, block: int) -> int:
    return -(-count // block)


def _whole(count: int, block: int) -> int:
    return _up(count, block) * block


RULES: dict[str, Callable[..., Iterator[int]]] = {
    "aten._scaled_dot_product_flash_attention.default": _flash_forward,
    "aten._scaled_dot_product_flash_attention_backward.default": _flash_backward,
    "aten._scaled_dot_product_efficient_attention.default": _efficient_forward,
    "aten._scaled_dot_product_efficient_attention_backward.default": _efficient_backward,
}
