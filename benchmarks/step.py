"""The 7B model's decode step on a CUDA device: tokens per second, beside what its bytes allow.

The step is timed with and without a CUDA graph, behind contexts of several lengths. Weights are
random. `make gpu PARTS=step` runs this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.card import device, here
from benchmarks.decode_cases import MODEL
from benchmarks.rows import Row
from benchmarks.timing import copy_bytes_per_second, target, warm
from tritter_model.config import ModelConfig, RunConfig
from tritter_model.decode_graph import DecodeGraph
from tritter_model.kv_cache import KVCache
from tritter_model.ops.argmax import argmax
from tritter_model.transformer import Transformer

CONFIG = ModelConfig(**MODEL | {"num_hidden_layers": 32})
"""The profile `7b-128k-gqa`."""
CONTEXTS = (131072, 32768, 4096)
"""The first has the target."""
STEPS = 32
ROOFLINE_WANTED = 0.5

Figures = dict[str, Any]
Decode = Callable[[Tensor, int], Tensor]


def rows(_files: Path) -> Iterator[Row]:
    """The step that has a target, then the others."""
    for tokens in CONTEXTS:
        for graph in (True, False):
            how = "CUDA graph" if graph else "eager"
            yield Row(f"decode step behind {tokens:,} tokens, {how}", partial(step, tokens, graph))


@torch.inference_mode()
def step(tokens: int, graph: bool) -> Figures:
    """Steps in a row behind so many tokens, timed with the host.

    A step reads every weight and the cache once: that, at a copy's rate, is its roofline.
    """
    run = RunConfig(
        model=CONFIG, context=tokens + 3 * STEPS, multiprocessors=here().multiprocessors
    )
    built, kv = model(), KVCache(run, device())
    for layer in kv.layers:
        for tensor in layer.tensors():
            tensor.zero_()
    decode = DecodeGraph(run, built, kv).decode if graph else eagerly(run, built, kv)
    seconds = seconds_a_step(decode, kv, tokens)
    nbytes = read_bytes(built) + kv.nbytes
    share = nbytes / copy_bytes_per_second() / seconds
    figures: Figures = {
        "microseconds": round(1e6 * seconds, 1),
        "tokens_per_second": round(run.batch / seconds, 2),
        "read_bytes": nbytes,
        "share_of_roofline": round(share, 4),
    }
    if graph and tokens == CONTEXTS[0]:
        figures["target"] = target("decode step, of its roofline", ROOFLINE_WANTED, share)
    return figures


@cache
def model() -> Transformer:
    """The model, once for all contexts."""
    return Transformer(CONFIG, device())


def eagerly(run: RunConfig, built: Transformer, kv: KVCache) -> Decode:
    """Greedy steps, one after the other."""

    def decode(token: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            token = argmax(built.logits(built.extend(token, kv, run.multiprocessors)))
        return token

    return decode


def seconds_a_step(decode: Decode, kv: KVCache, tokens: int) -> float:
    """Seconds of one step, over many in a row, once the card is warm."""
    token = torch.zeros((kv.layers[0].batch, 1), dtype=torch.int64, device=kv.position.device)

    def steps() -> None:
        kv.seek(tokens)
        decode(token, STEPS)

    if kv.position.is_meta:
        steps()
        return float("nan")
    warm(steps, wait)
    start = time.perf_counter()
    steps()
    wait()
    return (time.perf_counter() - start) / STEPS


def wait() -> None:
    """Until the device has done what it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def read_bytes(built: Transformer) -> int:
    """Weights that a step reads: all but the embedding's table, unless it is the head's too."""
    stored = [*built.parameters(), *built.buffers()]
    if built.head is not built.embedding:
        table = {tensor.data_ptr() for tensor in built.embedding.state_dict().values()}
        stored = [tensor for tensor in stored if tensor.data_ptr() not in table]
    return sum(tensor.nbytes for tensor in stored)
