"""Kernels around the key-value cache, launched at 7B shapes on tensors that have no memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.kernel_cases import PREFILL, Case, empty, launch
from tritter_model.ops import rotary

HEADS, KV_HEADS, WIDTH, THETA, EPS = 32, 8, 128, 500_000.0, 1e-5


def cases() -> Iterator[Case]:
    """Every operator."""
    yield from rotary_cases()


def rotary_cases() -> Iterator[Case]:
    """RoPE and QK-norm: one token, a chunk, and the gradients."""
    norms, rotated = empty(2, WIDTH), HEADS + KV_HEADS
    position = empty(1, dtype=torch.int32)
    for tokens in (1, PREFILL):
        qkv = empty(tokens, rotated + KV_HEADS, WIDTH)
        args = (qkv, norms, position, 1, HEADS, THETA, EPS, qkv[:, :rotated])
        yield f"rotary, {tokens} tokens", lambda args=args: launch(rotary._rotate, *args)
    master, sums = empty(2, WIDTH, dtype=torch.float32), empty(256, 2, WIDTH, dtype=torch.float32)
    grad = empty(PREFILL, rotated, WIDTH)
    yield (
        "rotary, backward",
        lambda: launch(
            rotary._rotate_backward, grad, qkv, master, 1, HEADS, THETA, EPS, sums, grad, master
        ),
    )
