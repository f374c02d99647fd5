"""Attention over the key-value cache, on a CUDA device.

Decode attention over an int4 cache is timed beside SDPA over a bfloat16 cache of the same shape,
and beside what Hugging Face's quantised cache does: expand all of it, then SDPA. A chunk of the
prompt is timed beside SDPA. Bytes are compared with what a copy moves in the same run. What does
not fit the card's memory is left out, and the row says so. `make gpu PARTS=attention` runs this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from benchmarks.card import device, here
from benchmarks.rows import Row
from benchmarks.timing import (
    BEYOND_CACHE,
    Launch,
    Timing,
    ratio,
    rotation,
    share,
    target,
    time_graph,
)
from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache, LayerCache
from tritter_model.ops import kv_codec
from tritter_model.ops.decode_attention import decode_attention
from tritter_model.ops.prefill_attention import prefill_attention
from tritter_model.ops.tuning import tuned

HEADS, WIDTH, CHUNK = 32, 128, 2048
TOKENS = (131072, 32768, 4096)
"""The first has the targets."""
KV_HEADS = (8, 32)
BATCHES = (1, 8)
META = torch.device("meta")
MOST_COPIES = 48
DECODE_WANTED, PREFILL_WANTED = 2.5, 0.8

Figures = dict[str, Any]


def rows(_files: Path) -> Iterator[Row]:
    """What has a target, then the other contexts and batches."""
    first, *others = TOKENS
    for kv_heads in KV_HEADS:
        yield decode_row(first, kv_heads, 1)
    yield prefill_row(first)
    for tokens in others:
        yield from (decode_row(tokens, kv_heads, 1) for kv_heads in KV_HEADS)
        yield prefill_row(tokens)
    for batch in BATCHES[1:]:
        for tokens in TOKENS:
            yield from (decode_row(tokens, kv_heads, batch) for kv_heads in KV_HEADS)


def decode_row(tokens: int, kv_heads: int, batch: int) -> Row:
    """One token of each sequence."""
    name = f"decode, {tokens:,} tokens, {kv_heads} KV heads, batch {batch}"
    return Row(name, partial(decode, tokens, kv_heads, batch))


def prefill_row(tokens: int) -> Row:
    """A chunk of the prompt, with the fewest KV heads."""
    return Row(f"chunk behind {tokens:,} tokens", partial(prefill, tokens, KV_HEADS[0]))


def shape(tokens: int, kv_heads: int, batch: int, chunk: int = 1, dtype: str = "int4") -> RunConfig:
    """One layer at the 7B model's width, with room for a chunk behind so many tokens."""
    model = ModelConfig(
        hidden_size=HEADS * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        head_dim=WIDTH,
        intermediate_size=11008,
        vocab_size=65536,
    )
    return RunConfig(
        model=model,
        cache=CacheConfig(dtype=dtype),
        context=tokens + chunk,
        batch=batch,
        multiprocessors=here().multiprocessors,
    )


def filled(run: RunConfig) -> KVCache:
    """A cache of random contents."""
    cache = KVCache(run, device())
    for layer in cache.layers:
        for tensor in layer.tensors():
            if tensor.dtype == torch.uint8:
                tensor.random_(0, 256)
            elif tensor.numel():
                tensor.uniform_(0.01, 0.1)
    return cache


def queries(run: RunConfig, chunk: int) -> Tensor:
    """Queries, keys and values of new tokens: [B * chunk, A + 2G, D]."""
    heads = run.model.num_attention_heads + 2 * run.model.num_key_value_heads
    return torch.randn(run.batch * chunk, heads, run.model.head_dim, device=device()).bfloat16()


def copies(nbytes: int) -> int:
    """Inputs of this size that no cache holds together; one where one is enough."""
    beyond = nbytes > BEYOND_CACHE * here().l2_cache_bytes
    return 1 if beyond else min(rotation(nbytes), MOST_COPIES)


def decode(tokens: int, kv_heads: int, batch: int) -> Figures:
    """One token a sequence over so many cached ones, by each way."""
    run = shape(tokens, kv_heads, batch)
    plain_bytes = 4 * batch * kv_heads * tokens * WIDTH
    ways: dict[str, tuple[int, Callable[[], list[Launch]]]] = {
        "int4": (plain_bytes, partial(our_launches, run)),
        "sdpa": (2 * plain_bytes, partial(sdpa_launches, run, grouped=False)),
        "sdpa, queries in rows": (2 * plain_bytes, partial(sdpa_launches, run, grouped=True)),
        "expanded": (3 * plain_bytes, partial(expanding_launches, run)),
    }
    with tuned(dependent_launch=True):  # as a decode step launches ours
        timings = {name: timed(make) for name, (needed, make) in ways.items() if fits(needed)}
    figures: Figures = {
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "left_out": [name for name in ways if name not in timings],
    }
    if ours := timings.pop("int4", None):
        figures["share_of_copy_rate"] = share(KVCache(run, META).nbytes, ours)
        figures |= _times(ours, timings)
    if batch == 1 and tokens == TOKENS[0]:
        what = f"decode attention, {kv_heads} KV heads, times SDPA"
        figures["target"] = target(what, DECODE_WANTED, figures.get("times_sdpa"))
    return figures


def _times(ours: Timing, others: dict[str, Timing]) -> Figures:
    """How many times faster we are, than the faster SDPA and than expanding, where both ran."""
    sdpa = [timing.median_us for name, timing in others.items() if name.startswith("sdpa")]
    found = {"times_sdpa": ratio(min(sdpa), ours)} if sdpa else {}
    if "expanded" in others:
        found["times_expanded"] = ratio(others["expanded"].median_us, ours)
    return found


def fits(needed_bytes: int) -> bool:
    """Whether the card has so much memory left, with a tenth to spare."""
    if device().type != "cuda":
        return True
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device())
    return needed_bytes < 0.9 * free


def timed(make: Callable[[], list[Launch]]) -> Timing:
    """Make inputs, time what reads them, let them go."""
    return time_graph(make())


def our_launches(run: RunConfig) -> list[Launch]:
    """The decode kernel, over caches that are full but for one token."""
    heads, held = run.model.num_attention_heads, run.context - 1
    qkv, caches = queries(run, 1), [filled(run)]
    caches += [filled(run) for _ in range(copies(caches[0].nbytes) - 1)]
    for cache in caches:
        cache.seek(held)
    return [
        partial(
            decode_attention, qkv, cache.layers[0], cache.position, held, heads,
            run.multiprocessors,
        )
        for cache in caches
    ]  # fmt: skip


def sdpa_launches(run: RunConfig, grouped: bool) -> list[Launch]:
    """SDPA over bfloat16; `grouped`: queries that share keys as rows of one head."""
    held, kv_heads = run.context - 1, run.model.num_key_value_heads
    sizes = (run.batch, kv_heads, held, run.model.head_dim)
    q = queries(run, 1)[:, : run.model.num_attention_heads, None]
    q = q.reshape(run.batch, kv_heads, -1, run.model.head_dim) if grouped else q.contiguous()
    count = copies(4 * run.batch * kv_heads * held * run.model.head_dim)
    made = [
        [torch.empty(sizes, dtype=torch.bfloat16, device=device()).normal_() for _ in range(2)]
        for _ in range(count)
    ]
    return [
        partial(F.scaled_dot_product_attention, q, k, v, enable_gqa=not grouped) for k, v in made
    ]


def expanding_launches(run: RunConfig) -> list[Launch]:
    """Expand the whole int4 cache to bfloat16, then SDPA."""
    caches = [filled(run) for _ in range(min(copies(KVCache(run, META).nbytes), 8))]
    q = queries(run, 1)[:, : run.model.num_attention_heads, None].contiguous()
    return [partial(expand_and_attend, q, cache.layers[0]) for cache in caches]


def expand_and_attend(q: Tensor, layer: LayerCache) -> Tensor:
    """What a cache does that hands out whole tensors."""
    by_group = kv_codec.unpack(layer.keys, layer.bits).unflatten(2, (-1, layer.group)).bfloat16()
    keys = by_group * layer.key_scale[:, :, :, None].bfloat16()
    del by_group
    keys = keys.add_(layer.key_minimum[:, :, :, None].bfloat16()).flatten(2, 3)
    values = kv_codec.unpack(layer.values, layer.bits).unflatten(-1, (-1, layer.value_group))
    values = values.bfloat16() * layer.value_scale[..., None].bfloat16()
    values = values.add_(layer.value_minimum[..., None].bfloat16()).flatten(-2)
    held = keys.shape[2]
    return F.scaled_dot_product_attention(q, keys, values[:, :, :held], enable_gqa=True)


def prefill(tokens: int, kv_heads: int) -> Figures:
    """A chunk of one sequence's prompt behind so many tokens, beside SDPA over bfloat16."""
    run = shape(tokens, kv_heads, 1, CHUNK)
    ours, sdpa = timed(partial(our_chunk, run, tokens)), timed(partial(sdpa_chunk, run))
    times = ratio(sdpa.median_us, ours)
    figures: Figures = {"int4": asdict(ours), "sdpa": asdict(sdpa), "times_sdpa": times}
    if tokens == TOKENS[0]:
        figures["target"] = target("chunk of the prompt, times SDPA", PREFILL_WANTED, times)
    return figures


def our_chunk(run: RunConfig, held: int) -> list[Launch]:
    """The prefill kernels over an int4 cache."""
    layer, heads = filled(run).layers[0], run.model.num_attention_heads
    return [partial(prefill_attention, queries(run, CHUNK), layer, held, heads)]


def sdpa_chunk(run: RunConfig) -> list[Launch]:
    """Causal SDPA, aligned to the end; keys are repeated for their query heads beforehand."""
    heads, width = run.model.num_attention_heads, run.model.head_dim
    q = torch.randn(1, heads, CHUNK, width, device=device()).bfloat16()
    sizes = (1, heads, run.context, width)
    k, v = (torch.empty(sizes, dtype=torch.bfloat16, device=device()).normal_() for _ in range(2))
    mask = causal_lower_right(CHUNK, run.context)
    return [partial(F.scaled_dot_product_attention, q, k, v, attn_mask=mask)]
