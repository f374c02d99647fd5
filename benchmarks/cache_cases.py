"""Kernels around the key-value cache, launched at 7B shapes on tensors that have no memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.kernel_cases import PREFILL, Case, empty, launch
from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache, LayerCache
from tritter_model.ops import angles, append, rotary, rotary_backward
from tritter_model.ops.rotate_append import _rotate_append

HEADS, KV_HEADS, WIDTH, THETA, EPS = 32, 8, 128, 500_000.0, 1e-5


def cases() -> Iterator[Case]:
    """Every operator."""
    yield from rotary_cases()
    yield from append_cases()


def rotary_cases() -> Iterator[Case]:
    """RoPE and QK-norm: one token, a chunk, and the gradients."""
    norms, rotated = empty(2, WIDTH), HEADS + KV_HEADS
    position = empty(1, dtype=torch.int32)
    for tokens in (1, PREFILL):
        qkv = empty(tokens, rotated + KV_HEADS, WIDTH)
        found, rest = empty(tokens, 2, WIDTH // 2, dtype=torch.float32), (1, HEADS, THETA, EPS)
        for name, turns in (("", None), (", angles at hand", found)):
            args = (qkv, norms, position, turns, *rest, qkv[:, :rotated])
            yield f"rotary, {tokens} tokens{name}", lambda args=args: launch(rotary._rotate, *args)
    yield "rotary angles", lambda: launch(angles._rotary_angles, position, THETA, found)
    master, sums = empty(2, WIDTH, dtype=torch.float32), empty(256, 2, WIDTH, dtype=torch.float32)
    grad = empty(PREFILL, rotated, WIDTH)
    yield (
        "rotary, backward",
        lambda: launch(
            rotary_backward._rotate_backward,
            grad,
            qkv,
            master,
            1,
            HEADS,
            THETA,
            EPS,
            sums,
            grad,
            master,
        ),
    )


def append_cases() -> Iterator[Case]:
    """New tokens into caches of each kind: a chunk, and one token that is rotated as well."""
    norms, position = empty(2, WIDTH), empty(1, dtype=torch.int32)
    for dtype in ("int4", "fp8"):
        cache = layer_cache(dtype)
        stored = cache.layout(), cache.tensors()
        chunk, token = (empty(n, HEADS + 2 * KV_HEADS, WIDTH) for n in (PREFILL, 1))
        put = (chunk, position, HEADS, *stored)
        yield f"append, {dtype}", lambda put=put: launch(append._append, *put)
        found = empty(1, 2, WIDTH // 2, dtype=torch.float32)
        for name, turns in (("", None), (", angles at hand", found)):
            both = (token, norms, position, turns, HEADS, THETA, EPS, *stored)
            case = f"rotary and append, {dtype}{name}"
            yield case, lambda both=both: launch(_rotate_append, *both)


def layer_cache(dtype: str) -> LayerCache:
    """One layer's cache of 128K tokens."""
    model = ModelConfig(
        hidden_size=HEADS * WIDTH, num_hidden_layers=1, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=WIDTH, intermediate_size=1, vocab_size=1,
    )  # fmt: skip
    group = 32 if dtype == "int2" else 128
    run = RunConfig(model=model, cache=CacheConfig(dtype=dtype, group_size=group), context=131_072)
    return KVCache(run, torch.device("meta")).layers[0]
