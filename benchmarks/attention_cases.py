"""Kernels of attention over many queries, launched at 7B shapes on tensors without memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.kernel_cases import PREFILL, Case, empty, launch
from tritter_model.ops import attention, attention_backward

HEADS, KV_HEADS = 32, 8


def cases() -> Iterator[Case]:
    """Every operator."""
    yield from training_cases("attention", HEADS, KV_HEADS, 128, True)
    yield from training_cases("vision", 12, 12, 64, False)


def training_cases(
    name: str, heads: int, kv_heads: int, width: int, causal: bool
) -> Iterator[Case]:
    """Attention over whole sequences, and its gradients."""
    q, k, v = empty(PREFILL, heads + 2 * kv_heads, width).split([heads, kv_heads, kv_heads], 1)
    out, lse = empty(PREFILL, heads * width), empty(heads, PREFILL, dtype=torch.float32).T
    mask = (1, causal, 0, 4)
    yield name, lambda: launch(attention._attention, q, k, v, *mask, out, lse)
    yield (
        f"{name}, backward",
        lambda: launch(
            attention_backward._attention_backward, out, q, k, v, out, lse, *mask, lse, q, k, v
        ),
    )
