"""What attention kernels need beside their results: `models/cuda_attention.py` has the sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from tritter_mem.config.cards import GpuCard
from tritter_mem.models.cuda_attention import (
    AttentionSizes,
    efficient_backward_bytes,
    efficient_forward_bytes,
    flash_backward_bytes,
    flash_forward_bytes,
)


def _sizes(query: Tensor, key: Tensor, value: Tensor) -> AttentionSizes:
    """Of queries [B, H, Q, D], keys [B, G, K, D] and values [B, G, K, E]."""
    batch, heads, queries, width = query.shape
    return AttentionSizes(
        batch=batch,
        heads=heads,
        groups=key.shape[1],
        queries=queries,
        keys=key.shape[2],
        width=width,
        value_width=value.shape[-1],
        element_bytes=key.element_size(),
    )


def _flash_forward(
    card: GpuCard, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0,
    *rest: Any, **more: Any,
) -> Iterator[int]:  # fmt: skip
    if not dropout:
        yield from flash_forward_bytes(card, _sizes(query, key, value))


def _flash_backward(
    card: GpuCard, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor,
    *rest: Any, **more: Any,
) -> Iterator[int]:  # fmt: skip
    for tensor in (grad, out):
        if not tensor.transpose(1, 2).is_contiguous():
            yield tensor.numel() * tensor.element_size()
    yield from flash_backward_bytes(_sizes(query, key, value))


def _efficient_forward(
    card: GpuCard, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any
) -> Iterator[int]:
    yield from efficient_forward_bytes(_sizes(query, key, value))


def _efficient_backward(
    card: GpuCard, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any,
    **more: Any,
) -> Iterator[int]:  # fmt: skip
    yield from efficient_backward_bytes(_sizes(query, key, value))


RULES: dict[str, Callable[..., Iterator[int]]] = {
    "aten._scaled_dot_product_flash_attention.default": _flash_forward,
    "aten._scaled_dot_product_flash_attention_backward.default": _flash_backward,
    "aten._scaled_dot_product_efficient_attention.default": _efficient_forward,
    "aten._scaled_dot_product_efficient_attention_backward.default": _efficient_backward,
}
