"""Attention of a chunk of new tokens over the cache and over themselves.

The chunk's own keys and values are used in full precision; they are quantised when they enter the
cache. So a chunk first attends and is then appended: its tokens may take the place of some that its
first ones still see.

The kernel needs scratch that the reference does not, over a cache that is not in the activations'
type: one block of history, expanded, and the running output in float32. The wrapper allocates it.

Shapes: T = batch * C new tokens; A query heads, G key-value heads, D their width; `qkv` is
[T, A + 2G, D] with queries and keys already rotated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritter_model.kv_cache import LayerCache
from tritter_model.ops.cache_history import attend
from tritter_model.ops.registry import operator, scratch

HISTORY_BLOCK = 8192


def prefill_attention(qkv: Tensor, cache: LayerCache, position: int, heads: int) -> Tensor:
    """Attend to the cached tokens before `position` and to the new tokens: [T, A * D].

    Args:
        qkv: the new tokens' queries, keys and values.
        cache: this layer's cache, which holds the tokens before `position`.
        position: absolute position of the first new token; it decides what is launched.
        heads: A.
    """
    out = qkv.new_empty((qkv.shape[0], heads * qkv.shape[2]))
    temporary = _history_scratch(qkv, cache, position, heads)
    _prefill_attention(qkv, cache.tensors(), cache.layout(), position, heads, temporary, out)
    return out


def _history_scratch(qkv: Tensor, cache: LayerCache, position: int, heads: int) -> list[Tensor]:
    if position == 0 or cache.keys.dtype == qkv.dtype:
        return []
    block = (2, cache.batch, cache.kv_heads, min(HISTORY_BLOCK, cache.slots), qkv.shape[2])
    rows = (qkv.shape[0], heads)
    return [
        scratch(block, qkv, qkv.dtype),
        scratch((*rows, qkv.shape[2]), qkv, torch.float32),
        scratch((2, *rows), qkv, torch.float32),
    ]


@operator(
    "prefill_attention(Tensor qkv, Tensor[] cache, int[] layout, int position, int heads,"
    " Tensor(a!)[] scratch, Tensor(b!) out) -> ()"
)
def _prefill_attention(
    qkv: Tensor, cache: list[Tensor], layout: list[int], position: int, heads: int,
    temporary: list[Tensor], out: Tensor,
) -> None:  # fmt: skip
    del temporary
    attend(qkv, LayerCache.of(cache, layout), position, heads, out)
