"""One whole case, from loading to the last token or the optimizer's step, phase by phase.

Inference runs `load`, `warmup` (the first two chunks, the last one and a token, after which every
kernel that follows is compiled and libraries have their workspaces), `capture` (where decode is to
replay a CUDA graph), `prefill` (the prompt in chunks) and `decode`. Training runs `load`, `warmup`
(a step, after which the optimizer's state is there), then `forward`, `backward` and `optimizer`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from tritter_model.config import RunConfig
from tritter_model.decode_graph import DecodeGraph
from tritter_model.kv_cache import KVCache
from tritter_model.labels import WEIGHTS, label
from tritter_model.ops.argmax import argmax
from tritter_model.ops.cross_entropy import IGNORED
from tritter_model.optim import OPTIMIZERS, SGD
from tritter_model.transformer import Transformer
from tritter_model.vision import IMAGE, PATCHES

Phase = Callable[[str], AbstractContextManager[None]]


def run(run: RunConfig, device: str, phase: Phase) -> None:
    """Run a case.

    Args:
        run: the model and the work.
        device: `cpu`, `cuda`, `cuda:1` or `meta`.
        phase: entered with each phase's name around it.
    """
    case = infer if run.mode == "inference" else train
    case(run, torch.device(device), phase)


@torch.inference_mode()
def infer(run: RunConfig, device: torch.device, phase: Phase) -> Tensor:
    """Prefill and decode greedily; returns the new tokens, [B, new_tokens]."""
    with phase("load"):
        model = Transformer(run.model, device, seed=run.seed)
        cache = KVCache(run, device)
        prompt = _prompt(run, run.context - run.new_tokens, device)
    with phase("warmup"):
        _warm_up(run, model, cache, prompt)
    if run.captures:
        with phase("capture"):
            graph = DecodeGraph(run, model, cache)
    with phase("prefill"):
        logits = _prefill(run, model, cache, prompt)
    with phase("decode"):
        if run.captures:
            return graph.decode(argmax(logits), run.steps)
        chosen = [argmax(logits)]
        for _ in range(run.steps):
            hidden = model.extend(chosen[-1], cache, run.multiprocessors)
            logits = model.logits(hidden)
            chosen.append(argmax(logits))
        return torch.cat(chosen, 1)


def _warm_up(run: RunConfig, model: Transformer, cache: KVCache, prompt: Tensor) -> None:
    """The first two chunks, the last one where it belongs, one token; then the cache is empty.

    The last chunk differs in size and has the longest history: with it each kernel has run in every
    variant that the run needs. What the chunks before it would have cached is not there.
    """
    short = replace(run, shortened=True)
    *others, _ = run.warm_up_prompts
    for tokens in others:
        _prefill(short, model, cache, prompt[:, :tokens])
        cache.seek(0)
    logits = _prefill(short, model, cache, prompt)
    if run.new_tokens > 1:
        model.logits(model.extend(argmax(logits), cache, run.multiprocessors))
    cache.seek(0)


def _prefill(run: RunConfig, model: Transformer, cache: KVCache, prompt: Tensor) -> Tensor:
    """The prompt in chunks: logits of its last token, [B, V]."""
    prefix = _image_prefix(run, model)

    def extend(chunk: Tensor) -> Tensor:
        patches = None if prefix is None else prefix[:, cache.length :][:, : chunk.shape[1]]
        patches = None if patches is None or patches.shape[1] == 0 else patches
        return model.extend(chunk, cache, run.multiprocessors, patches)

    *before, last = prompt.split(run.prefill_chunk, 1)
    for chunk in before[: run.chunks - 1]:
        extend(chunk)  # the result is let go before the next chunk begins
    cache.seek(prompt.shape[1] - last.shape[1])  # a shortened run has not come so far
    return model.logits(extend(last)[:, -1:].clone())  # a copy: the chunk itself is let go


def _prompt(run: RunConfig, tokens: int, device: torch.device) -> Tensor:
    """Random token ids [B, tokens]; where the image's patches stand, neither a row nor a target."""
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(run.seed)
    shape = (run.batch, tokens)
    ids = torch.empty(shape, dtype=torch.int64, device=device)
    ids.random_(0, run.model.vocab_size, generator=generator)
    if run.model.vision:
        ids[:, :PATCHES].fill_(IGNORED)
    return ids


def _image_prefix(run: RunConfig, model: Transformer) -> Tensor | None:
    """Patch embeddings of one grey image a sequence: [B, 196, H]."""
    if model.vision is None:
        return None
    table = model.norm.weight
    images = table.new_zeros((run.batch, 3, IMAGE, IMAGE), dtype=model.dtype)
    prefix: Tensor = model.vision(images)
    return prefix


def train(run: RunConfig, device: torch.device, phase: Phase) -> list[float]:
    """Two steps, the first as a warm-up; returns their losses (empty on `meta`)."""
    with phase("load"), label(WEIGHTS):
        model = Transformer(run.model, device, trainable=True, seed=run.seed)
        optimizer = OPTIMIZERS[run.training.optimizer](model.parameters())
    ids = _prompt(run, run.context, device)
    targets = torch.roll(ids, -1, 1)
    targets[:, -1].fill_(IGNORED)
    with phase("warmup"):
        first = _step(run, (model, optimizer), (ids, targets), lambda _: nullcontext())
    second = _step(run, (model, optimizer), (ids, targets), phase)
    return [] if device.type == "meta" else [float(first), float(second)]


def _step(
    run: RunConfig, trained: tuple[Transformer, SGD], batch: tuple[Tensor, Tensor], phase: Phase
) -> Tensor:
    model, optimizer = trained
    ids, targets = batch
    at_once = run.training.micro_batch or run.batch
    pieces = zip(ids.split(at_once), targets.split(at_once), strict=True)
    losses = [_piece(run, model, piece, phase) for piece in pieces]
    with phase("optimizer"):
        optimizer.step()
        optimizer.zero_grad()
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _piece(
    run: RunConfig, model: Transformer, batch: tuple[Tensor, Tensor], phase: Phase
) -> Tensor:
    """Forward and backward of some of the sequences: gradients and loss are their part of all.

    As many tokens count in each sequence, so a sequence's part is one of them all.
    """
    rows = len(batch[0])
    with phase("forward"):
        prefix = _image_prefix(replace(run, batch=rows), model)
        loss = model.loss(*batch, run.training, run.cache.attention_sinks, prefix)
        del prefix
        if rows < run.batch:
            loss = loss * (rows / run.batch)
    with phase("backward"):
        loss.backward()
    return loss.detach()
