"""Kernels of attention over many queries, launched at 7B shapes on tensors without memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.kernel_cases import PREFILL, Case, empty, launch
from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache, LayerCache
from tritter_model.ops import attention, attention_backward, prefill_attention
from tritter_model.ops.history_block import expand_history

HEADS, KV_HEADS = 32, 8


def cases() -> Iterator[Case]:
    """Every operator."""
    yield from training_cases("attention", HEADS, KV_HEADS, 128, True)
    yield from training_cases("vision", 12, 12, 64, False)
    yield from training_cases("attention in float32", HEADS, KV_HEADS, 128, True, torch.float32)
    for dtype, position in (("int4", 0), ("int4", 20_000), ("bfloat16", 20_000)):
        yield prefill_case(dtype, position)
    yield history_case("int8")


def training_cases(
    name: str, heads: int, kv_heads: int, width: int, causal: bool,
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[Case]:  # fmt: skip
    """Attention over whole sequences, and its gradients."""
    qkv = empty(PREFILL, heads + 2 * kv_heads, width, dtype=dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], 1)
    out = empty(PREFILL, heads * width, dtype=dtype)
    lse = empty(heads, PREFILL, dtype=torch.float32).T
    mask = (1, causal, 0, 4)
    yield name, lambda: launch(attention._attention, q, k, v, *mask, out, lse)
    yield (
        f"{name}, backward",
        lambda: launch(
            attention_backward._attention_backward, out, q, k, v, out, lse, *mask, lse, q, k, v
        ),
    )


def layer_cache(dtype: str) -> LayerCache:
    """One layer's cache of 128K tokens."""
    model = ModelConfig(
        hidden_size=4096,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=128,
        intermediate_size=1,
        vocab_size=1,
    )
    run = RunConfig(model=model, cache=CacheConfig(dtype=dtype), context=131_072)
    return KVCache(run, torch.device("meta")).layers[0]


def prefill_case(dtype: str, position: int) -> Case:
    """A chunk of 2,048 tokens over a cache; 20,000 tokens are three blocks of history."""
    cache = layer_cache(dtype)
    qkv = empty(PREFILL, HEADS + 2 * KV_HEADS, 128)
    temporary = prefill_attention._history_scratch(qkv, cache, position, HEADS)
    args = (cache.tensors(), cache.layout(), position, HEADS, temporary, empty(PREFILL, 4096))
    return (
        f"prefill, {dtype}, behind {position:,}",
        lambda: launch(prefill_attention._prefill_attention, qkv, *args),
    )


def history_case(dtype: str) -> Case:
    """A block of history, expanded."""
    cache, out = layer_cache(dtype), empty(2, 1, KV_HEADS, 16384, 128)
    tokens = range(cache.sinks, cache.sinks + 16384)
    return f"history, {dtype}", lambda: expand_history(cache, tokens, 20_000, out)
