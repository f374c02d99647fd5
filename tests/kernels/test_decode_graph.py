"""Decode by replays of a CUDA graph: the eager steps' tokens, and no allocations."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.decode_graph import DecodeGraph
from tritter_model.kv_cache import KVCache
from tritter_model.run import infer
from tritter_model.transformer import Transformer

CUDA = torch.device("cuda")
MODEL = ModelConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=100,
    vocab_size=131,
)
CASE = RunConfig(
    model=MODEL, cache=CacheConfig(group_size=32), context=90, prefill_chunk=25, new_tokens=40
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("window", [None, 23])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "int8", "int4", "int2"])
def test_replays_decode_what_eager_steps_do(dtype: str, window: int | None, batch: int) -> None:
    """Through a whole group and into the next, and through a ring that wraps."""
    cache, model = replace(CASE.cache, dtype=dtype), replace(MODEL, sliding_window=window)
    case = replace(CASE, cache=cache, model=model, batch=batch)
    eager, replayed = (
        infer(replace(case, cuda_graph=graph), CUDA, lambda _: nullcontext())
        for graph in (False, True)
    )
    assert eager.shape == (batch, 40)
    assert torch.equal(eager, replayed)


@torch.inference_mode()
def test_replays_allocate_a_copy_of_each_token_alone() -> None:
    cache = KVCache(CASE, CUDA)
    graph = DecodeGraph(CASE, Transformer(MODEL, CUDA), cache)
    first = torch.zeros((1, 1), dtype=torch.int64, device=CUDA)
    graph.decode(first, 1)
    before = torch.cuda.memory_stats()
    graph.decode(first, 4)
    after = torch.cuda.memory_stats()
    made = after["allocation.all.allocated"] - before["allocation.all.allocated"]
    assert made == 4 + 1  # and all of them joined
    assert after["segment.all.allocated"] == before["segment.all.allocated"]
