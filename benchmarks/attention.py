"""Attention over the key-value cache, and whole decode steps, on a CUDA device.

Decode attention over an int4 cache is timed beside SDPA over a bfloat16 cache of the same shape,
and beside what Hugging Face's quantised cache does: expand all of it, then SDPA. A chunk of the
prompt is timed beside SDPA, and the 7B model's decode with and without a CUDA graph. Bytes are held
against what a copy moves in the same run. Run with `python -m benchmarks.attention --output
attention.json`, which writes every figure and prints tables; what does not fit the card's memory is
left out, and said. Without a CUDA device it says so and exits with 3.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from benchmarks.decode_speed import decode_speeds
from benchmarks.figures import environment, share, timed_on_cuda
from benchmarks.timing import (
    BEYOND_CACHE,
    Launch,
    Timing,
    copy_bytes_per_second,
    rotation,
    time_graph,
)
from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache, LayerCache
from tritter_model.ops import kv_codec
from tritter_model.ops.decode_attention import decode_attention
from tritter_model.ops.prefill_attention import prefill_attention

HEADS, WIDTH, CHUNK = 32, 128, 2048
TOKENS = (4096, 32768, 131072)
KV_HEADS = (8, 32)
BATCHES = (1, 8)
DEVICE, META = torch.device("cuda"), torch.device("meta")
MOST_COPIES = 48
DECODE_WANTED, PREFILL_WANTED, ROOFLINE_WANTED = 2.5, 0.8, 0.5

Row = dict[str, Any]


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
        multiprocessors=multiprocessors(),
    )


def multiprocessors() -> int:
    """Of the card."""
    if DEVICE.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(DEVICE).multi_processor_count


def filled(run: RunConfig) -> KVCache:
    """A cache of random contents."""
    cache = KVCache(run, DEVICE)
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
    return torch.randn(run.batch * chunk, heads, run.model.head_dim, device=DEVICE).bfloat16()


def copies(nbytes: int) -> int:
    """Inputs of this size that no cache holds together; one where one is enough."""
    if DEVICE.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    return 1 if nbytes > BEYOND_CACHE * cache else min(rotation(nbytes), MOST_COPIES)


def decode(tokens: int, kv_heads: int, batch: int, copy_rate: float) -> Row:
    """One token a sequence over so many cached ones, three ways."""
    run = shape(tokens, kv_heads, batch)
    plain_bytes = 4 * batch * kv_heads * tokens * WIDTH
    ways: dict[str, tuple[int, Callable[[], list[Launch]]]] = {
        "int4": (plain_bytes, partial(our_launches, run)),
        "sdpa": (2 * plain_bytes, partial(sdpa_launches, run, grouped=False)),
        "sdpa, queries in rows": (2 * plain_bytes, partial(sdpa_launches, run, grouped=True)),
        "expanded": (3 * plain_bytes, partial(expanding_launches, run)),
    }
    timings = {name: timed(make) for name, (needed, make) in ways.items() if fits(needed)}
    sdpa = [timing.median_us for name, timing in timings.items() if name.startswith("sdpa")]
    nbytes = KVCache(run, META).nbytes
    return {
        "tokens": tokens,
        "kv_heads": kv_heads,
        "batch": batch,
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "left_out": [name for name in ways if name not in timings],
        "times_sdpa": ratio(min(sdpa, default=None), timings.get("int4")),
        "times_expanded": ratio(median(timings.get("expanded")), timings.get("int4")),
        "share_of_copy_rate": share(nbytes, timings["int4"], copy_rate)
        if "int4" in timings
        else None,
    }


def median(timing: Timing | None) -> float | None:
    """Microseconds, where there are any."""
    return timing.median_us if timing else None


def ratio(other_us: float | None, ours: Timing | None) -> float | None:
    """How many times faster we are, where both were timed."""
    return round(other_us / ours.median_us, 3) if other_us and ours else None


def fits(needed_bytes: int) -> bool:
    """Whether the card has so much memory left, with a tenth to spare."""
    if DEVICE.type != "cuda":
        return True
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(DEVICE)
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
        [torch.empty(sizes, dtype=torch.bfloat16, device=DEVICE).normal_() for _ in range(2)]
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


def prefill(tokens: int, kv_heads: int) -> Row:
    """A chunk of one sequence's prompt behind so many tokens, beside SDPA over bfloat16."""
    run = shape(tokens, kv_heads, 1, CHUNK)
    timings = {
        "int4": timed(partial(our_chunk, run, tokens)),
        "sdpa": timed(partial(sdpa_chunk, run)),
    }
    return {
        "tokens": tokens,
        "kv_heads": kv_heads,
        "chunk": CHUNK,
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "times_sdpa": ratio(timings["sdpa"].median_us, timings["int4"]),
    }


def our_chunk(run: RunConfig, held: int) -> list[Launch]:
    """The prefill kernels over an int4 cache."""
    layer, heads = filled(run).layers[0], run.model.num_attention_heads
    return [partial(prefill_attention, queries(run, CHUNK), layer, held, heads)]


def sdpa_chunk(run: RunConfig) -> list[Launch]:
    """Causal SDPA, aligned to the end; keys are repeated for their query heads beforehand."""
    heads, width = run.model.num_attention_heads, run.model.head_dim
    q = torch.randn(1, heads, CHUNK, width, device=DEVICE).bfloat16()
    sizes = (1, heads, run.context, width)
    k, v = (torch.empty(sizes, dtype=torch.bfloat16, device=DEVICE).normal_() for _ in range(2))
    mask = causal_lower_right(CHUNK, run.context)
    return [partial(F.scaled_dot_product_attention, q, k, v, attn_mask=mask)]


def measure() -> Row:
    """Every figure."""
    copy_rate = copy_bytes_per_second()
    return {
        "schema": "tritter-mem.attention/1",
        "environment": environment(),
        "copy_bytes_per_second": round(copy_rate),
        **figures(copy_rate),
    }


def figures(copy_rate: float) -> Row:
    """Every figure that is held against a copy of this rate."""
    decoding, prefilling = [], []
    for batch in BATCHES:
        for kv_heads in KV_HEADS:
            for tokens in TOKENS:
                decoding.append(decode(tokens, kv_heads, batch, copy_rate))
                print(f"timed: {tokens} tokens, {kv_heads} KV heads, {batch}", file=sys.stderr)
    for tokens in TOKENS:
        prefilling.append(prefill(tokens, KV_HEADS[0]))
        print(f"timed: a chunk behind {tokens} tokens", file=sys.stderr)
    speeds = decode_speeds(DEVICE, TOKENS, copy_rate)
    found = {"decode": decoding, "prefill": prefilling, "model": speeds}
    return found | {"targets": list(targets(found))}


def targets(found: Row) -> Iterator[Row]:
    """The ratios to reach at the longest context, and those that were."""
    last = max(TOKENS)
    for row in found["decode"]:
        if row["tokens"] == last and row["batch"] == 1:
            what = f"decode attention, {row['kv_heads']} KV heads, times SDPA"
            yield target(what, DECODE_WANTED, row["times_sdpa"])
    for row in found["prefill"]:
        if row["tokens"] == last:
            yield target("chunk of the prompt, times SDPA", PREFILL_WANTED, row["times_sdpa"])
    for row in found["model"]:
        if row["tokens"] == last and row["cuda_graph"]:
            yield target("decode step, of its roofline", ROOFLINE_WANTED, row["share_of_roofline"])


def target(what: str, wanted: float, got: float | None) -> Row:
    """One ratio to reach; what did not fit the card was not reached."""
    reached = got is not None and got >= wanted
    return {"what": what, "wanted": wanted, "got": got, "reached": reached}


def target_lines(found: Row) -> list[str]:
    """Each ratio to reach, and whether it was."""
    return [
        f"{row['what']:<48} wanted {row['wanted']:.2f},"
        f" got {'nothing' if row['got'] is None else format(row['got'], '.2f')}"
        f" {'reached' if row['reached'] else 'NOT REACHED'}"
        for row in found["targets"]
    ]


def tables(found: Row) -> str:
    """The figures for reading."""
    lines = [
        f"{'tokens, KV heads, batch':<26}{'int4':>12}{'x SDPA':>9}{'x expanded':>12}  of a copy"
    ]
    for row in found["decode"]:
        title = f"{row['tokens']:,}, {row['kv_heads']}, {row['batch']}"
        ours = row["timings"].get("int4", {}).get("median_us")
        cells = (ours, row["times_sdpa"], row["times_expanded"], row["share_of_copy_rate"])
        time, sdpa, expanded, copied = ("-" if c is None else f"{c:.2f}" for c in cells)
        lines.append(f"{title:<26}{time:>9} us{sdpa:>9}{expanded:>12}{copied:>11}")
        lines += [f"  left out, for memory: {', '.join(row['left_out'])}"] * bool(row["left_out"])
    lines += ["", f"{'chunk behind tokens':<26}{'int4':>12}{'x SDPA':>9}"]
    for row in found["prefill"]:
        time = row["timings"]["int4"]["median_us"]
        lines.append(f"{row['tokens']:<26,}{time:>9.0f} us{row['times_sdpa']:>9.2f}")
    lines += ["", f"{'7B decode behind tokens':<26}{'tokens/s':>12}  of its roofline"]
    for row in found["model"]:
        title = f"{row['tokens']:,}{', CUDA graph' if row['cuda_graph'] else ''}"
        speed = row["tokens_per_second"]
        lines.append(f"{title:<26}{speed:>12.1f}{row['share_of_roofline']:>17.0%}")
    return "\n".join([*lines, "", *target_lines(found)])


def main() -> int:
    """Measure, write, print; the exit code."""
    return timed_on_cuda("attention", measure, tables)


if __name__ == "__main__":
    sys.exit(main())
