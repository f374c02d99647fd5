"""Inference: the prompt in chunks, then token by token."""

from __future__ import annotations

from collections.abc import Iterator

from tritter_mem import torch_release
from tritter_mem.models.architecture import EXPANDED_ROWS, Rows, SteppedBlock
from tritter_mem.planner.case import Case
from tritter_mem.planner.moments import Moment, alive, highest
from tritter_mem.planner.vision import prefix_bytes, vision_moments

TOKEN_ID_BYTES = 8
POSITION_BYTES = 4


def inference_moments(case: Case) -> Iterator[Moment]:
    """The highest moment of each phase, without what is alive throughout.

    The phases are `load`, `capture` where a CUDA graph is asked for, `prefill` and `decode`.
    """
    work = case.work
    ids = work.batch * (work.context - work.new_tokens) * TOKEN_ID_BYTES
    prompt = {"activations": ids + POSITION_BYTES}
    yield Moment("load", "prompt", prompt)

    if case.captures:
        prompt["activations"] += work.batch * TOKEN_ID_BYTES  # a replayed step's token
        prompt["workspace"] = torch_release.random_state_bytes()
        yield highest(_step(case, "capture")).plus(prompt)
    prefix = {"activations": prefix_bytes(case)}
    prefill = [chunk.plus(prefix) for chunk in _prefill(case)]
    yield highest([*prefill, *vision_moments(case, "prefill")]).plus(prompt)
    yield highest(_decode(case)).plus(prompt)


def _prefill(case: Case) -> Iterator[Moment]:
    """Each kind of chunk that the prompt has: the first, those between, the last."""
    for tokens, cached in _chunks(case):
        yield _layers(case, case.rows(tokens), "prefill", cached)
    yield _head(case, "prefill")


def _chunks(case: Case) -> Iterator[tuple[int, bool]]:
    """Tokens of a chunk, and whether the cache holds something before it."""
    prompt = case.work.context - case.work.new_tokens
    chunk = min(case.work.prefill_chunk, prompt)
    yield chunk, False
    if prompt >= 2 * chunk:
        yield chunk, True
    if prompt % chunk:
        yield prompt % chunk, True


def _decode(case: Case) -> Iterator[Moment]:
    """One token a sequence; the logits of the step before, and the tokens so far, stay alive.

    The first token is the prompt's. While the third and later ones run, the hidden state of the
    step before is alive too. At the end the tokens are joined. Replays of a graph allocate nothing
    but a copy of each token; the prompt's logits stay.
    """
    rows, new = case.rows(1), case.work.new_tokens
    eager = new > 1 and not case.captures
    hidden = rows.activation_bytes(rows.hidden)
    token, logits = rows.batch * TOKEN_ID_BYTES, logits_bytes(case, rows.batch)
    if eager:
        before = {"logits": logits, "activations": (new - 1) * token}
        stale = {"activations": hidden if new > 2 else 0}
        layer, head = _step(case, "decode")
        yield layer.plus(before).plus(stale)
        yield head.plus(before)
    end = 2 * new * token + (hidden if eager else 0)
    yield Moment("decode", "tokens", {"logits": logits, "activations": end})


def _step(case: Case, phase: str) -> tuple[Moment, Moment]:
    """One token a sequence: its highest layer, and its logits."""
    return _layers(case, case.rows(1), phase, cached=True), _head(case, phase)


def _layers(case: Case, rows: Rows, phase: str, cached: bool) -> Moment:
    """The highest moment of all layers: equal blocks are looked at once."""
    blocks = dict.fromkeys(
        block for layer in case.architecture.counted_layers for block in layer.blocks
    )
    shared = max(sum(block.inference_shared(rows)) for block in blocks)
    moments = (moment for block in blocks for moment in _steps(case, block, rows, phase, cached))
    return highest(moments).plus({"activations": shared})


def _steps(
    case: Case, block: SteppedBlock, rows: Rows, phase: str, cached: bool
) -> Iterator[Moment]:
    scratch = block.cache_scratch(rows, case.cache, cached, case.card.multiprocessors)
    tensors = {**block.tensors(rows), "attention_scratch": scratch}
    for step, names in block.inference_steps(rows).items():
        yield Moment(phase, f"{step} of {rows.tokens:,} tokens", alive(names.split(), tensors))


def _head(case: Case, phase: str) -> Moment:
    """The last token's logits: its hidden state, the norm of it, and the projection's result.

    Where the projection has another type, the hidden states are cast to it; an int8 one is expanded
    a block of rows at a time.
    """
    rows = case.rows(1)
    cast = case.embeddings.is_float and case.embeddings is not case.compute
    expanded = 0 if case.embeddings.is_float else min(EXPANDED_ROWS, case.architecture.vocabulary)
    return Moment(phase, "logits", {
        "activations": 2 * rows.activation_bytes(rows.hidden),
        "logits": logits_bytes(case, rows.batch)
        + cast * rows.batch * rows.hidden * case.embeddings.element_bytes,
        "workspace": expanded * rows.hidden * case.compute.element_bytes,
    })  # fmt: skip


def logits_bytes(case: Case, tokens: int) -> int:
    """Logits of some tokens, in the projection's type."""
    return tokens * case.architecture.vocabulary * case.logits_format.element_bytes
