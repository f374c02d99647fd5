"""The 7B model's decode: tokens per second, beside what its bytes allow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tritter_mem.config.loading import load_profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.bundled import run_settings
from tritter_model.config import RunConfig
from tritter_model.decode_graph import DecodeGraph
from tritter_model.kv_cache import KVCache
from tritter_model.ops.argmax import argmax
from tritter_model.transformer import Transformer

PROFILE, STEPS, WARM_UP = "7b-128k-gqa", 32, 3

Row = dict[str, Any]


def decode_speeds(device: torch.device, contexts: Sequence[int], copy_rate: float) -> list[Row]:
    """Decode behind so many tokens, without and with a CUDA graph; weights are random."""
    profile = load_profile(PROFILE)
    run = run_settings(profile, find_gpu(profile.gpu.name))
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        run = replace(run, multiprocessors=card.multi_processor_count)
    model = Transformer(run.model, device)
    rows = []
    for tokens in contexts:
        rows += speeds_behind(tokens, run, model, copy_rate)
        print(f"timed: the model's decode behind {tokens} tokens", file=sys.stderr)
    return rows


@torch.inference_mode()
def speeds_behind(tokens: int, run: RunConfig, model: Transformer, copy_rate: float) -> list[Row]:
    """Both ways behind so many tokens."""
    run = replace(run, context=tokens + STEPS + WARM_UP)
    device = model.norm.weight.device
    cache = KVCache(run, device)
    for layer in cache.layers:
        for tensor in layer.tensors():
            tensor.zero_()
    rows = [speed(tokens, eagerly(run, model, cache), cache, model, copy_rate)]
    if device.type == "cuda":
        graph = DecodeGraph(run, model, cache)
        rows.append(speed(tokens, graph.decode, cache, model, copy_rate))
    return [row | {"cuda_graph": number > 0} for number, row in enumerate(rows)]


def eagerly(run: RunConfig, model: Transformer, cache: KVCache) -> Callable[[Tensor, int], Tensor]:
    """Greedy steps, one after the other."""

    def decode(token: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            token = argmax(model.logits(model.extend(token, cache, run.multiprocessors)))
        return token

    return decode


def speed(
    tokens: int, decode: Callable[[Tensor, int], Tensor], cache: KVCache, model: Transformer,
    copy_rate: float,
) -> Row:  # fmt: skip
    """Steps in a row, timed with the host; a step reads every weight and the cache once."""
    batch, device = cache.layers[0].batch, cache.position.device
    token = torch.zeros((batch, 1), dtype=torch.int64, device=device)
    cache.seek(tokens)
    decode(token, WARM_UP)
    _finish(device)
    start = time.perf_counter()
    decode(token, STEPS)
    _finish(device)
    seconds = (time.perf_counter() - start) / STEPS
    nbytes = read_bytes(model) + cache.nbytes
    return {
        "tokens": tokens,
        "tokens_per_second": batch / seconds,
        "read_bytes": nbytes,
        "share_of_roofline": nbytes / copy_rate / seconds,
    }


def read_bytes(model: Transformer) -> int:
    """Weights that a step reads: all but the embedding's table, unless it is the head's too."""
    stored = [*model.parameters(), *model.buffers()]
    if model.head is not model.embedding:
        table = {tensor.data_ptr() for tensor in model.embedding.state_dict().values()}
        stored = [tensor for tensor in stored if tensor.data_ptr() not in table]
    return sum(tensor.nbytes for tensor in stored)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
