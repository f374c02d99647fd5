"""Decode attention over every type of cache, launched at 7B shapes on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache
from tritter_model.ops import decode_attention as decode

CONTEXT, MULTIPROCESSORS = 131072, 132
MODEL: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "head_dim": 128,
    "intermediate_size": 11008,
    "vocab_size": 65536,
}

Case = tuple[str, Callable[[], None]]


def cases() -> Iterator[Case]:
    """Each type with grouped queries; the default one also with a window, and without groups."""
    for dtype in ("int4", "int8", "int2", "bfloat16", "fp8"):
        yield case(f"decode, {dtype}, 8 KV heads", dtype, 8)
    yield case("decode, int4, 32 KV heads", "int4", 32)
    yield case("decode, int4, 8 KV heads, window", "int4", 8, sliding_window=4096)
    yield case("decode, int4 in groups of 32, 8 KV heads", "int4", 8, group=32)


def case(name: str, dtype: str, kv_heads: int, group: int = 128, **model: Any) -> Case:
    """One token of one sequence behind 128K others."""
    config = ModelConfig(num_key_value_heads=kv_heads, **MODEL, **model)
    cache = CacheConfig(dtype=dtype, group_size=group)
    run = RunConfig(model=config, cache=cache, context=CONTEXT)
    return name, lambda: launch(run)


def launch(run: RunConfig) -> None:
    """Launch what one layer launches."""
    layer, model = KVCache(run, torch.device("meta")).layers[0], run.model
    heads = model.num_attention_heads
    rows = (1, heads + 2 * model.num_key_value_heads, model.head_dim)
    qkv = torch.empty(rows, dtype=torch.bfloat16, device="meta")
    position = torch.empty(1, dtype=torch.int32, device="meta")
    partial = decode.partial_outputs(qkv, layer, heads, MULTIPROCESSORS)
    out = qkv.new_empty((1, heads * model.head_dim))
    operator: Any = decode._decode_attention
    operator.launch(qkv, layer.tensors(), layer.layout(), 0, heads, position, partial, out)
