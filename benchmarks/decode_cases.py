"""Decode attention over every type of cache, launched at 7B shapes on tensors without memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.kernel_cases import Case, variant
from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache
from tritter_model.ops import decode_attention as decode
from tritter_model.ops.rows import QuantisedRows

CONTEXT, MULTIPROCESSORS = 131072, 132
MODEL: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 11008,
    "vocab_size": 65536,
}


def cases() -> Iterator[Case]:
    """One token of one sequence behind 128K others, in a cache of each type; one in float32.

    Int4 and int8 come read by words, too, and int4 by two warps a program.
    """
    for dtype in ("int4", "int8", "int2", "bfloat16", "fp8"):
        run = RunConfig(model=ModelConfig(**MODEL), cache=CacheConfig(dtype=dtype), context=CONTEXT)
        yield f"decode, {dtype}", partial(launch, run)
        if dtype in ("int4", "int8"):
            yield variant((f"decode, {dtype}", partial(launch, run)), decode_pairs=False)
        if dtype == "int4":
            yield variant((f"decode, {dtype}", partial(launch, run)), decode_warps=2)
            yield "decode, int4, fused_merge True", partial(launch, run, quantises=True)
    wide = replace(run, model=replace(run.model, weight_format="float32"), cache=CacheConfig())
    yield "decode in float32, int4", partial(launch, wide)


def launch(run: RunConfig, quantises: bool = False) -> None:
    """Launch what one layer launches, with the merged rows quantised at once or not."""
    layer, model = KVCache(run, torch.device("meta")).layers[0], run.model
    heads = model.num_attention_heads
    rows = (1, heads + 2 * model.num_key_value_heads, model.head_dim)
    qkv = torch.empty(rows, dtype=layer.sink_values.dtype, device="meta")
    position = torch.empty(1, dtype=torch.int32, device="meta")
    partial = decode.partial_outputs(qkv, layer, heads, MULTIPROCESSORS)
    out = qkv.new_empty((1, heads * model.head_dim))
    rows = [position, *QuantisedRows.empty(out, out.shape[1])] if quantises else []
    operator: Any = decode._decode_attention
    operator.launch(qkv, layer.tensors(), layer.layout(), 0, heads, position, partial, out, rows)
