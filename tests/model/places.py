"""Positions as operators take them, and attention over the cache as a layer chooses it."""

import torch
from torch import Tensor

from tritter_model.kv_cache import LayerCache
from tritter_model.ops.decode_attention import decode_attention
from tritter_model.ops.prefill_attention import prefill_attention

MULTIPROCESSORS = 3


def at(position: int) -> Tensor:
    """A position on the device."""
    return torch.tensor([position], dtype=torch.int32)


def attended(qkv: Tensor, cache: LayerCache, position: int, heads: int) -> Tensor:
    """Attention of new tokens at a position: one a sequence is decoded, more are a chunk."""
    if qkv.shape[0] == cache.batch:
        return decode_attention(qkv, cache, at(position), position, heads, MULTIPROCESSORS)
    return prefill_attention(qkv, cache, position, heads)
