"""A chunk over the cache and itself: the kernels against the reference, which expands it all."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tests.kernels.test_attention import cosine, error
from tritter_mem.simulation.events import Event
from tritter_mem.simulation.recorder import Recorder
from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache, LayerCache
from tritter_model.ops import append, cache_history, prefill_attention
from tritter_model.ops.cache_history import history
from tritter_model.ops.history_block import expand_history
from tritter_model.ops.prefill_attention import prefill_attention as attend
from tritter_model.ops.registry import use_kernels
from tritter_model.run import run

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]
ROUNDING = 6e-3
"""Largest relative error: weights and output are each rounded to bfloat16. History is so on both
sides: a key's rounding shifts its score, by 1% and more where the key is large."""

CASE = RunConfig(
    model=ModelConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        intermediate_size=96,
        vocab_size=67,
    ),
    cache=CacheConfig(dtype="int4", group_size=32, attention_sinks=4),
    context=300,
)


def case(heads: tuple[int, int, int] = (2, 1, 64), batch: int = 1, **cache: Any) -> RunConfig:
    """Query heads, key-value heads and width; the cache's settings, and the window."""
    window = cache.pop("window", None)
    model = replace(
        CASE.model,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=heads[2],
        sliding_window=window,
    )
    return replace(CASE, model=model, batch=batch, cache=replace(CASE.cache, **cache))


def filled(case: RunConfig, tokens: int, device: torch.device) -> LayerCache:
    """A layer's cache that holds so many tokens of each sequence."""
    cache = KVCache(case, device).layers[0]
    if tokens:
        append.fill(some(case, tokens), cache, 0, case.model.num_attention_heads)
    return cache


def some(case: RunConfig, tokens: int) -> Tensor:
    """New tokens [T, A + 2G, D]; one channel of the keys is ten times the others."""
    heads, kv_heads = case.model.num_attention_heads, case.model.num_key_value_heads
    qkv = torch.randn(case.batch * tokens, heads + 2 * kv_heads, case.model.head_dim)
    qkv[:, heads : heads + kv_heads, 3] *= 10
    return qkv.bfloat16()


def rounded_history(cache: LayerCache, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the reference sees of the cache, in the precision that the kernel has it in."""
    positions, keys, values = history(cache, position)
    return positions, keys.bfloat16().float(), values.bfloat16().float()


# What is in the cache, tokens before the chunk, tokens of the chunk.
CASES: dict[str, tuple[RunConfig, int, int]] = {
    "nothing before": (case(), 0, 17),
    "one token behind the sinks": (case(), 5, 2),
    "only sinks before": (case(), 2, 17),
    "whole groups": (case(), 4 + 64, 2),
    "one token over a group": (case(), 4 + 65, 2),
    "partial group, int8": (case(dtype="int8"), 90, 129),
    "int2, no sinks": (case(dtype="int2", attention_sinks=0), 100, 3),
    "fp8": (case(dtype="fp8"), 100, 3),
    "float16": (case(dtype="float16"), 100, 3),
    "in place": (case(dtype="bfloat16"), 150, 17),
    "ring in place, window ends in it": (case(dtype="bfloat16", window=40, batch=3), 115, 33),
    "window smaller than a group": (case(window=9), 100, 17),
    "window to either side of a block": (case(window=65), 140, 129),
    "width 128, 8 heads": (case((8, 8, 128), group_size=128), 4 + 129, 17),
    "32 heads": (case((32, 32, 64)), 20, 2),
    "width 20": (case((4, 2, 20), group_size=16), 50, 5),
}


SEVERAL_BLOCKS = [
    name
    for name, (run_, position, _) in CASES.items()
    if position > 80 and run_.cache.dtype != "bfloat16"
]


@pytest.mark.parametrize(
    ("name", "block"), [*((n, 8192) for n in CASES), *((n, 64) for n in SEVERAL_BLOCKS)]
)
def test_a_chunk_attends_as_the_reference_does(
    device: torch.device, both: Both, monkeypatch: pytest.MonkeyPatch, name: str, block: int
) -> None:
    """With blocks of 64 tokens the output runs on from one to the next."""
    case, position, tokens = CASES[name]
    monkeypatch.setattr(prefill_attention, "HISTORY_BLOCK", block)
    monkeypatch.setattr(cache_history, "history", rounded_history)
    cache, qkv = filled(case, position, device), some(case, tokens)
    ours, theirs = both(lambda: attend(qkv, cache, position, case.model.num_attention_heads))
    assert error(ours, theirs) < ROUNDING
    assert cosine(ours, theirs) >= 0.999


def test_too_many_heads_for_a_grid_are_refused() -> None:
    """CUDA would refuse the launch without saying why."""
    cache = KVCache(case((4, 2, 16), batch=20_000), torch.device("meta")).layers[0]
    qkv = torch.empty((40_000, 8, 16), dtype=torch.bfloat16, device="meta")
    with pytest.raises(ValueError, match=r"got 20000 sequences of 4 heads.*expected 65535"):
        prefill_attention._prefill_attention.launch(
            qkv, cache.tensors(), cache.layout(), 0, 4, [], qkv
        )


def test_every_float_of_8_bits_is_expanded_exactly(device: torch.device, kernels: None) -> None:
    case_ = case((2, 1, 64), dtype="fp8", attention_sinks=0)
    cache = KVCache(case_, device).layers[0]
    for stored in (cache.keys, cache.values):
        bits = torch.arange(stored.numel()).view(stored.shape) % 256
        stored.view(torch.uint8).copy_(bits)
    out = torch.empty((2, 1, 1, 8, 64), dtype=torch.float32)
    use_kernels(True)
    expand_history(cache, range(0, 8), 8, out)
    assert torch.equal(out[0].nan_to_num(7e9), cache.keys[:, :, :8].float().nan_to_num(7e9))
    assert torch.equal(out[1].nan_to_num(7e9), cache.values[:, :, :8].float().nan_to_num(7e9))


LONG, ONE_SIDE_BYTES, BLOCK_BYTES = 20_000, 20_000 * 64 * 2, 2 * 8192 * 64 * 2
"""Tokens of a context; its keys, or values, in 16 bits; a block of both, expanded."""


def recorded(dtype: str) -> list[Event]:
    """Every allocation of a run, through a cache of this type."""
    long = replace(case(dtype=dtype), context=LONG, prefill_chunk=512, new_tokens=2)
    with Recorder("meta") as recorder:
        run(long, "meta", recorder.phase)
    return [event for event in recorder.log if event.kind == "alloc"]


@pytest.mark.parametrize("dtype", ["int8", "int4", "int2", "fp8"])
def test_no_cache_of_full_precision_is_ever_there(dtype: str) -> None:
    """The largest that a run allocates is a block of history: less than one side in 16 bits."""
    made = recorded(dtype)
    assert max(event.bytes for event in made) == BLOCK_BYTES < ONE_SIDE_BYTES
    assert {event.category for event in made if event.bytes == BLOCK_BYTES} == {"workspace"}
    assert {event.phase for event in made} >= {"load", "prefill", "decode"}


def test_a_cache_of_full_precision_would_be_seen() -> None:
    """What the test above looks for is there where the cache is bfloat16."""
    sinks = 4 * 64 * 2
    large = [event for event in recorded("bfloat16") if event.bytes >= ONE_SIDE_BYTES - sinks]
    assert [event.category for event in large] == ["kv_cache"] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [8, 32])
@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_a_chunk_of_the_7b_model_is_as_near_as_pytorch_s_own(
    kernels: None, dtype: str, kv_heads: int
) -> None:
    """Against SDPA over the same tokens, which it is given expanded and in bfloat16."""
    case_ = replace(case((32, kv_heads, 128), dtype=dtype, group_size=128), context=32768)
    position, tokens, device = 20_000, 2048, torch.device("cuda")
    with device:
        use_kernels(False)
        cache, qkv = filled(case_, position, device), some(case_, tokens)
        use_kernels(True)
        out = attend(qkv, cache, position, 32)
        wanted = sdpa(qkv, cache, position, tokens)
    assert error(out, wanted) < ROUNDING
    assert cosine(out, wanted) >= 0.999


def sdpa(qkv: Tensor, cache: LayerCache, position: int, tokens: int) -> Tensor:
    """PyTorch's attention over the cache, expanded by the reference, and the chunk."""
    heads = qkv.shape[1] - 2 * cache.kv_heads
    q, k, v = (x.transpose(0, 1)[None] for x in qkv.split([heads, *[cache.kv_heads] * 2], 1))
    _, old_k, old_v = history(cache, position)
    k, v = torch.cat((old_k.bfloat16(), k), 2), torch.cat((old_v.bfloat16(), v), 2)
    seen = torch.ones(tokens, position + tokens, dtype=torch.bool).tril(position)
    out = F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)
