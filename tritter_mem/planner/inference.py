"""Activations of inference: the prompt in chunks, then token by token."""

from __future__ import annotations

from collections.abc import Iterator

from tritter_mem.config.pytorch import random_state_bytes
from tritter_mem.config.schema import Profile
from tritter_mem.planner.kv_cache import cache_slots
from tritter_mem.planner.live import Moment, activation_bytes, alive, highest, row_bytes
from tritter_mem.planner.sizes import (
    DTYPE_BYTES,
    EXPANDED_ROWS,
    Sizes,
    ceil_div,
    compute_dtype,
    layers_by_window,
    sizes_of,
)
from tritter_mem.planner.vision import prefix_bytes, vision_moments
from tritter_mem.planner.workspace import captures
from tritter_model.ops.tuning import splits_for_the_card, tuning

HISTORY_BLOCK = 8192
SPLIT_TOKENS = 256
TOKEN_ID_BYTES = 8
POSITION_BYTES = 4

# A layer, step by step: the tensors that are alive. `rows_x` is what a linear layer takes, `y` what
# it gives back to the residual stream x.
STEPS = {
    "QKV projection": "x rows_hidden expanded_qkv qkv",
    "attention": "x qkv out attention_scratch",
    "output projection": "x out rows_out expanded_out y",
    "gate and up projection": "x rows_hidden expanded_gate_up gate_up",
    "MLP activation": "x gate_up rows_inner",
    "down projection": "x rows_inner expanded_down y",
}

# The same where decode attention quantises what it merges; its output is a part of its scratch.
MERGED_STEPS = {
    **STEPS,
    "attention": "x qkv rows_out attention_scratch",
    "output projection": "x rows_out y",
}


def inference_moments(profile: Profile, multiprocessors: int) -> Iterator[Moment]:
    """The highest moment of each phase, without what is alive throughout.

    The phases are `load`, `capture` where a CUDA graph is asked for, `prefill` and `decode`.
    """
    work = profile.workload
    ids = work.batch * (work.context - work.new_tokens) * TOKEN_ID_BYTES
    prompt = {"activations": ids + POSITION_BYTES}
    yield Moment("load", "prompt", prompt)
    if captures(profile):
        prompt["activations"] += work.batch * TOKEN_ID_BYTES  # a replayed step's token
        prompt["workspace"] = random_state_bytes()
        yield highest(_step(profile, "capture", multiprocessors)).plus(prompt)
    prefix = {"activations": prefix_bytes(profile)}
    prefill = [chunk.plus(prefix) for chunk in _prefill(profile, multiprocessors)]
    yield highest([*prefill, *vision_moments(profile, "prefill")]).plus(prompt)
    yield highest(_decode(profile, multiprocessors)).plus(prompt)


def _prefill(profile: Profile, multiprocessors: int) -> Iterator[Moment]:
    """Each kind of chunk that the prompt has: the first, those between, the last."""
    for tokens, cached in _chunks(profile):
        sizes = sizes_of(profile, tokens)
        yield _layer(profile, sizes, "prefill", _attention_scratch(
            profile, sizes, cached, multiprocessors))  # fmt: skip
    yield _head(profile, "prefill")


def _chunks(profile: Profile) -> Iterator[tuple[int, bool]]:
    """Tokens of a chunk, and whether the cache holds something before it."""
    prompt = profile.workload.context - profile.workload.new_tokens
    chunk = min(profile.workload.prefill_chunk, prompt)
    yield chunk, False
    if prompt >= 2 * chunk:
        yield chunk, True
    if prompt % chunk:
        yield prompt % chunk, True


def _decode(profile: Profile, multiprocessors: int) -> Iterator[Moment]:
    """One token a sequence; the logits of the step before, and the tokens so far, stay alive.

    The first token is the prompt's. While the third and later ones run, the hidden state of the
    step before is alive too. At the end the tokens are joined. Replays of a graph allocate nothing
    but a copy of each token; the prompt's logits stay.
    """
    sizes, new = sizes_of(profile, 1), profile.workload.new_tokens
    eager = new > 1 and not captures(profile)
    hidden = activation_bytes(sizes, sizes.hidden)
    token, logits = sizes.batch * TOKEN_ID_BYTES, logits_bytes(profile, sizes.batch)
    if eager:
        before = {"logits": logits, "activations": (new - 1) * token}
        stale = {"activations": hidden if new > 2 else 0}
        layer, head = _step(profile, "decode", multiprocessors)
        yield layer.plus(before).plus(stale)
        yield head.plus(before)
    end = 2 * new * token + (hidden if eager else 0)
    yield Moment("decode", "tokens", {"logits": logits, "activations": end})


def _step(profile: Profile, phase: str, multiprocessors: int) -> tuple[Moment, Moment]:
    """One token a sequence: its layer and its logits."""
    sizes = sizes_of(profile, 1)
    scratch = _attention_scratch(profile, sizes, True, multiprocessors)
    return _layer(profile, sizes, phase, scratch), _head(profile, phase)


def _layer(profile: Profile, sizes: Sizes, phase: str, attention_scratch: int) -> Moment:
    tensors = {**_tensors(profile, sizes), "attention_scratch": attention_scratch}
    angles = 4 * sizes.tokens // sizes.batch * sizes.head_dim if tuning().angles_once else 0
    return highest(
        Moment(phase, f"{step} of {sizes.tokens:,} tokens", alive(names.split(), tensors))
        for step, names in (MERGED_STEPS if _merges_rows(sizes) else STEPS).items()
    ).plus({"activations": angles})


def _merges_rows(sizes: Sizes) -> bool:
    """Whether attention gives quantised rows, as it may where there is one token a sequence."""
    return sizes.ternary and sizes.tokens == sizes.batch and tuning().fused_merge


def _tensors(profile: Profile, sizes: Sizes) -> dict[str, int]:
    """Bytes of each tensor of `STEPS`."""
    stream = activation_bytes(sizes, sizes.hidden)
    # Ternary layers take int8 rows; the others the norm's result, and their input as it is.
    rows_hidden = row_bytes(sizes, sizes.hidden) if sizes.ternary else stream
    rows_inner = (row_bytes if sizes.ternary else activation_bytes)(sizes, sizes.inner)
    return {
        "x": stream,
        "y": stream,
        "rows_hidden": rows_hidden,
        "rows_out": row_bytes(sizes, sizes.attention) if sizes.ternary else 0,
        "rows_inner": rows_inner,
        "qkv": activation_bytes(sizes, sizes.qkv),
        "out": activation_bytes(sizes, sizes.attention),
        "gate_up": activation_bytes(sizes, 2 * sizes.inner),
        **_expanded(profile, sizes),
    }


def _expanded(profile: Profile, sizes: Sizes) -> dict[str, int]:
    """int8 and int4 weights are expanded for a product, a block of rows at a time."""
    if profile.weights.format not in ("int8", "int4"):
        return {}
    return {
        f"expanded_{name}": min(EXPANDED_ROWS, rows) * columns * sizes.compute
        for name, (rows, columns) in sizes.linears.items()
    }


def _attention_scratch(profile: Profile, sizes: Sizes, cached: bool, multiprocessors: int) -> int:
    """Scratch of attention over the cache, in the layer that needs most."""
    slots = max(cache_slots(profile, window) for window in layers_by_window(profile))
    if sizes.tokens == sizes.batch:
        return _decode_scratch(sizes, slots, multiprocessors)
    same = profile.kv_cache.dtype == compute_dtype(profile)
    if not cached or same:
        return 0
    history = 2 * sizes.batch * sizes.kv * min(HISTORY_BLOCK, slots) * sizes.compute
    return history + 4 * sizes.tokens * (sizes.attention + 2 * sizes.heads)


def _decode_scratch(sizes: Sizes, slots: int, multiprocessors: int) -> int:
    """float32 partial outputs and their log-sum-exp for each split of the cache.

    Enough splits for two programs a multiprocessor (the model's `decode_programs`), none below 256
    tokens, one more for tail, sinks and the new token.
    """
    wanted = splits_for_the_card(sizes.batch * sizes.kv_heads, multiprocessors)
    splits = max(1, min(wanted, ceil_div(slots, SPLIT_TOKENS))) + 1
    merged = activation_bytes(sizes, sizes.attention) + 4 * sizes.batch
    partial = 4 * splits * sizes.batch * sizes.heads * (sizes.head_dim + 1)
    return partial + (merged if _merges_rows(sizes) else 0)


def _head(profile: Profile, phase: str) -> Moment:
    """The last token's logits: its hidden state, the norm of it, and the projection's result."""
    sizes = sizes_of(profile, 1)
    parts = {
        "activations": 2 * activation_bytes(sizes, sizes.hidden),
        "logits": logits_bytes(profile, sizes.batch) + _cast_bytes(profile, sizes),
        "workspace": 0,
    }
    if profile.weights.embedding_dtype == "int8":
        block = min(EXPANDED_ROWS, sizes.vocabulary)
        parts["workspace"] = block * sizes.hidden * sizes.compute
    return Moment(phase, "logits", parts)


def _cast_bytes(profile: Profile, sizes: Sizes) -> int:
    """The last hidden states in the projection's type, where it is another."""
    dtype = profile.weights.embedding_dtype
    if dtype in ("int8", compute_dtype(profile)):
        return 0
    return sizes.batch * sizes.hidden * DTYPE_BYTES[dtype]


def logits_bytes(profile: Profile, rows: int) -> int:
    """Logits of some tokens, in the projection's type (an int8 one gives the activations')."""
    dtype = profile.weights.embedding_dtype
    stored = compute_dtype(profile) if dtype == "int8" else dtype
    return rows * profile.model.vocab_size * DTYPE_BYTES[stored]
