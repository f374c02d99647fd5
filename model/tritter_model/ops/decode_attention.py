"""Attention of one new token a sequence over the cache.

The new token's own key and value are taken from `qkv`, in full precision, whether or not the cache
holds them already. The position is read on the device, so that a CUDA graph of a decode step can be
replayed at every position.

The kernel needs scratch that the reference does not: the partial outputs of the splits, and their
log-sum-exp. The wrapper allocates it.

Shapes: B sequences; A query heads, G key-value heads, D their width; `qkv` is [B, A + 2G, D] with
queries and keys already rotated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritter_model.kv_cache import LayerCache
from tritter_model.ops.cache_history import attend
from tritter_model.ops.registry import operator, scratch

SPLIT_TOKENS = 256


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
    partial = _partial_outputs(qkv, cache, heads, multiprocessors)
    _decode_attention(qkv, cache.tensors(), cache.layout(), length, heads, position, partial, out)
    return out


def decode_splits(batch_kv_heads: int, slots: int, multiprocessors: int) -> int:
    """Parts of the cache that one token's attention reads side by side.

    Enough for two blocks a multiprocessor, but none below `SPLIT_TOKENS` tokens; and one more for
    the tail, the sinks and the new token.
    """
    wanted = -(-2 * multiprocessors // batch_kv_heads)
    return max(1, min(wanted, -(-slots // SPLIT_TOKENS))) + 1


def _partial_outputs(
    qkv: Tensor, cache: LayerCache, heads: int, multiprocessors: int
) -> list[Tensor]:
    splits = decode_splits(cache.batch * cache.kv_heads, cache.slots, multiprocessors)
    shape = (splits, qkv.shape[0], heads)
    return [
        scratch((*shape, qkv.shape[2]), qkv, torch.float32),
        scratch(shape, qkv, torch.float32),
    ]


@operator(
    "decode_attention(Tensor qkv, Tensor[] cache, int[] layout, int length, int heads,"
    " Tensor position, Tensor(a!)[] partial, Tensor(b!) out) -> ()"
)
def _decode_attention(
    qkv: Tensor, cache: list[Tensor], layout: list[int], length: int, heads: int,
    position: Tensor, partial: list[Tensor], out: Tensor,
) -> None:  # fmt: skip
    del length, partial
    attend(qkv, LayerCache.of(cache, layout), int(position), heads, out)
