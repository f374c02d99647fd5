"""Attention over the cache, against a reference that keeps every token and rounds it itself."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.places import at, attended
from tritter_model.config import CacheConfig, RunConfig
from tritter_model.kv_cache import KVCache
from tritter_model.ops.append import append
from tritter_model.ops.decode_attention import decode_splits
from tritter_model.ops.tuning import tuned

CPU = torch.device("cpu")
PLAIN = {"bfloat16": torch.bfloat16, "float16": torch.float16, "fp8": torch.float8_e4m3fn}
BITS = {"int8": 8, "int4": 4, "int2": 2}
HEADS, KV_HEADS, WIDTH, GROUP, CONTEXT, BATCH = 4, 2, 20, 16, 56, 3


def rounded(x: Tensor, bits: int, dim: int) -> Tensor:
    """Numbers as `bits` bits, a float16 minimum and a float16 step give them back."""
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-6).half().float()
    low = low.half().float()
    return ((x - low) / step).round().clamp(0, 2**bits - 1) * step + low


def remembered(run: RunConfig, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, tokens, G, D] as later tokens see them: sinks exact, the rest rounded."""
    sinks, dtype = run.cache.attention_sinks, run.cache.dtype
    k, v = k.clone(), v.clone()
    if dtype in PLAIN:
        k[:, sinks:] = k[:, sinks:].to(PLAIN[dtype]).float()
        v[:, sinks:] = v[:, sinks:].to(PLAIN[dtype]).float()
        return k, v
    by_group = v[:, sinks:].unflatten(-1, (-1, min(GROUP, WIDTH) if WIDTH % GROUP == 0 else WIDTH))
    v[:, sinks:] = rounded(by_group, BITS[dtype], -1).flatten(-2)
    for start in range(sinks, k.shape[1] - GROUP + 1, GROUP):
        group = slice(start, start + GROUP)
        k[:, group] = rounded(k[:, group], BITS[dtype], 1)
    return k, v


def reference(run: RunConfig, qkv: Tensor, position: int) -> Tensor:
    """Attention of the tokens from `position` on, in float64; `qkv`: [B, all tokens, heads, D]."""
    q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], 2)
    old_k, old_v = remembered(run, k[:, :position], v[:, :position])
    k, v = (
        torch.cat(pair, 1).double() for pair in ((old_k, k[:, position:]), (old_v, v[:, position:]))
    )
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q[:, position:].double(), k) * WIDTH**-0.5
    window, sinks = run.model.sliding_window, run.cache.attention_sinks
    keys = torch.arange(qkv.shape[1])
    ago = keys[position:, None] - keys
    hidden = ago < 0
    if window is not None:
        hidden |= (ago >= window) & (keys >= sinks)
    scores[:, :, hidden] = -torch.inf
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)


@pytest.fixture
def case(run: RunConfig, with_model: Any) -> Any:
    """`case(dtype, window, sinks)`: a float32 model, so that nothing but the cache rounds."""

    def make(dtype: str, window: int | None, sinks: int, compute: str = "float32") -> RunConfig:
        cache = CacheConfig(dtype=dtype, group_size=GROUP, attention_sinks=sinks)
        run_ = replace(run, cache=cache, batch=BATCH, context=CONTEXT)
        return with_model(run_, sliding_window=window, weight_format=compute)

    return make


def some_tokens() -> Tensor:
    """[B, tokens, heads, D]; one channel of keys and values is ten times the others."""
    qkv = torch.randn(BATCH, CONTEXT, HEADS + 2 * KV_HEADS, WIDTH)
    qkv[:, :, HEADS:, 3] *= 10
    return qkv


def chunks_of(tokens: int, largest: int) -> list[int]:
    chunks: list[int] = []
    while sum(chunks) < tokens:
        chunks.append(int(torch.randint(1, min(largest, tokens - sum(chunks)) + 1, ())))
    return chunks


@pytest.mark.parametrize("dtype", [*PLAIN, *BITS])
@pytest.mark.parametrize("window", [None, 1, 5, 16, 23, 1000])
@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("largest", [1, 20], ids=["decode", "chunks"])
def test_chunks_see_the_rounded_past_and_their_own_exact_tokens(
    case: Any, dtype: str, window: int | None, sinks: int, largest: int
) -> None:
    run, qkv = case(dtype, window, sinks), some_tokens()
    cache, position = KVCache(run, CPU).layers[0], 0
    for size in chunks_of(CONTEXT, largest):
        rows = qkv[:, position : position + size].flatten(0, 1)
        if largest > 1 or torch.rand(()) < 0.2:  # of single tokens, some are enough
            out = attended(rows, cache, position, HEADS).unflatten(0, (BATCH, -1))
            wanted = reference(run, qkv[:, : position + size], position)
            torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-4)
        append(rows, cache, at(position), HEADS)
        position += size


@pytest.mark.parametrize("dtype", [*PLAIN, *BITS])
def test_in_bfloat16_the_output_is_right_to_its_rounding(case: Any, dtype: str) -> None:
    run, qkv = case(dtype, 23, 4, "bfloat16"), some_tokens().bfloat16()
    cache, position = KVCache(run, CPU).layers[0], 40
    append(qkv[:, :position].flatten(0, 1), cache, at(0), HEADS)
    out = attended(qkv[:, position:].flatten(0, 1), cache, position, HEADS)
    wanted = reference(run, qkv.float(), position).flatten(0, 1)
    torch.testing.assert_close(out.double(), wanted, rtol=2**-8, atol=1e-4)
    assert torch.cosine_similarity(out.double().flatten(), wanted.flatten(), 0) > 0.9999


def test_one_token_a_sequence_is_a_chunk_of_one(case: Any) -> None:
    """Decode and prefill agree: two tokens at once give what one after the other gives."""
    run, qkv = case("bfloat16", None, 4), some_tokens().bfloat16().float()
    cache = KVCache(run, CPU).layers[0]
    append(qkv[:, :40].flatten(0, 1), cache, at(0), HEADS)
    both = attended(qkv[:, 40:42].flatten(0, 1), cache, 40, HEADS)
    first = attended(qkv[:, 40], cache, 40, HEADS)
    append(qkv[:, 40], cache, at(40), HEADS)
    second = attended(qkv[:, 41], cache, 41, HEADS)
    one_by_one = torch.stack((first, second), 1).flatten(0, 1)
    torch.testing.assert_close(both, one_by_one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "group", "error", "cosine"),
    [("int8", 128, 0.01, 0.9999), ("int4", 128, 0.16, 0.988), ("int2", 32, 0.65, 0.84)],
)
def test_rounding_8k_gaussian_tokens_costs_no_more_than_is_known_of_the_format(
    run: RunConfig, with_model: Any, dtype: str, group: int, error: float, cosine: float
) -> None:
    """Relative L2 error and cosine of 16 tokens' outputs over 8,192 remembered ones.

    For int4 the gates that the kernels have too; INT2 is known to be near 0.59 and 0.87.
    """
    cache = CacheConfig(dtype=dtype, group_size=group, attention_sinks=0)
    run = with_model(replace(run, cache=cache, context=8208), head_dim=128)
    qkv, stored = torch.randn(8208, HEADS + 2 * KV_HEADS, 128), KVCache(run, CPU).layers[0]
    append(qkv[:-16].bfloat16(), stored, at(0), HEADS)
    out = attended(qkv[-16:].bfloat16(), stored, 8192, HEADS).double()
    exact = KVCache(replace(run, cache=CacheConfig(dtype="bfloat16")), CPU).layers[0]
    append(qkv[:-16].bfloat16(), exact, at(0), HEADS)
    wanted = attended(qkv[-16:].bfloat16(), exact, 8192, HEADS).double()
    assert (out - wanted).norm() / wanted.norm() <= error
    assert torch.cosine_similarity(out.flatten(), wanted.flatten(), 0) >= cosine


def test_splits_fill_the_card_and_are_never_tiny() -> None:
    assert decode_splits(1, 131072, 132) == 512 + 1  # 256 tokens each
    assert decode_splits(8, 131072, 132) == 66 + 1
    assert decode_splits(1, 1024, 132) == 4 + 1
    assert decode_splits(1, 0, 132) == 1 + 1
    assert decode_splits(1000, 131072, 132) == 1 + 1
    with tuned(decode_programs=2):
        assert decode_splits(8, 131072, 131) == 33 + 1  # 32 would leave places empty
    with tuned(decode_programs=3):
        assert decode_splits(8, 131072, 132) == 49 + 1  # 50 would not all run at once
        assert decode_splits(1000, 131072, 132) == 1 + 1
        assert decode_splits(1, 1024, 132) == 4 + 1


@pytest.mark.parametrize(
    ("dtype", "position", "blocks"),
    [("int4", 0, 0), ("int4", 13, 3), ("bfloat16", 13, 0), ("float16", 13, 3)],
)
def test_a_chunk_over_an_expanded_history_takes_one_block_of_scratch(
    case: Any, recording: Any, dtype: str, position: int, blocks: int
) -> None:
    run = case(dtype, 23, 4, "bfloat16")
    cache, rows = KVCache(run, CPU).layers[0], some_tokens()[:, :5].bfloat16().flatten(0, 1)
    with recording() as events:
        attended(rows, cache, position, HEADS)
    out, *rest = events.made
    assert out.shape == (BATCH * 5, HEADS * WIDTH)
    assert len(rest) == blocks
    if blocks:
        block, running, sums = rest
        assert block.shape == (2, BATCH, KV_HEADS, cache.slots, WIDTH)
        assert (running.shape, sums.shape) == ((BATCH * 5, HEADS, WIDTH), (2, BATCH * 5, HEADS))
