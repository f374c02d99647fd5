"""What attention kernels need beside their results: `models/cuda_attention.py` has the sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from tritter_mem.config.cards import GpuCard
from tritter_mem.models.cuda_attention import (
    AttentionSizes,
    cudnn_backward_bytes,
    cudnn_forward_bytes,
    efficient_backward_bytes,
    efficient_forward_bytes,
    flash_backward_bytes,
    flash_forward_bytes,
)


def sizes(query: Tensor, key: Tensor, value: Tensor) -> AttentionSizes:
    """Those of queries [B, H, Q, D], keys [B, G, K, D] and values [B, G, K, E]."""
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
        yield from flash_forward_bytes(card, sizes(query, key, value))


def _flash_backward(
    card: GpuCard, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor,
    *rest: Any, **more: Any,
) -> Iterator[int]:  # fmt: skip
    for tensor in (grad, out):
        if not tensor.transpose(1, 2).is_contiguous():
            yield tensor.numel() * tensor.element_size()
    yield from flash_backward_bytes(sizes(query, key, value))


def _cudnn_forward(
    card: GpuCard, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any
) -> Iterator[int]:
    yield from cudnn_forward_bytes(card, sizes(query, key, value))


def _cudnn_backward(
    card: GpuCard, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any,
    **more: Any,
) -> Iterator[int]:  # fmt: skip
    copy = 0 if grad.stride(-1) == 1 else grad.numel() * grad.element_size()
    yield from cudnn_backward_bytes(sizes(query, key, value), copy)


def _efficient_forward(
    card: GpuCard, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any
) -> Iterator[int]:
    yield from efficient_forward_bytes(sizes(query, key, value))


def _efficient_backward(
    card: GpuCard, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any,
    **more: Any,
) -> Iterator[int]:  # fmt: skip
    yield from efficient_backward_bytes(sizes(query, key, value))


RULES: dict[str, Callable[..., Iterator[int]]] = {
    "aten._scaled_dot_product_flash_attention.default": _flash_forward,
    "aten._scaled_dot_product_flash_attention_backward.default": _flash_backward,
    "aten._scaled_dot_product_cudnn_attention.default": _cudnn_forward,
    "aten._scaled_dot_product_cudnn_attention_backward.default": _cudnn_backward,
    "aten._scaled_dot_product_efficient_attention.default": _efficient_forward,
    "aten._scaled_dot_product_efficient_attention_backward.default": _efficient_backward,
}
