"""QK-norm, RoPE and attention over whole sequences, differentiable: what a layer trains with.

Shapes: T = batch * S tokens; A query heads, G key-value heads, D their width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritter_model.checkpointing import kept
from tritter_model.labels import GRADIENTS, label
from tritter_model.ops.attention import Mask, attention
from tritter_model.ops.attention_backward import Attended, attention_backward
from tritter_model.ops.rotary import Heads, rotate_into
from tritter_model.ops.rotary_backward import rotate_backward


def self_attention(qkv: Tensor, norms: Tensor | None, heads: Heads, mask: Mask) -> Tensor:
    """QK-norm, RoPE and attention from a fused projection; differentiable.

    The backward pass rotates again: what is kept is `qkv`, the output and its log-sum-exp.

    Args:
        qkv: [T, A + 2G, D].
        norms: [2, D] weights of the query and the key norm, or None.
        heads: the split of `qkv`.
        mask: what each query sees.

    Returns:
        [T, A * D].
    """
    out: Tensor = _SelfAttention.apply(qkv, norms, heads, mask)  # type: ignore[no-untyped-call]
    return out


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, norms: Tensor | None, heads: Heads, mask: Mask) -> Tensor:
        def compute() -> tuple[Tensor, ...]:
            q, k, v = _rotated(qkv, norms, heads)
            return attention(q, k, v, heads.batch, mask)

        out, lse = kept("attention", compute)
        ctx.save_for_backward(qkv, norms, out, lse)
        ctx.heads, ctx.mask = heads, mask
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        qkv, norms, out, lse = ctx.saved_tensors
        heads: Heads = ctx.heads
        q, k, v = _rotated(qkv, norms, heads)
        grad_qkv = torch.empty_like(qkv)
        grad_rotated = grad_qkv.new_empty((qkv.shape[0], heads.rotated, qkv.shape[2]))
        past = Attended(q, k, v, out, lse)
        grads_qk = grad_rotated[:, : heads.heads], grad_rotated[:, heads.heads :]
        grad_v = grad_qkv[:, heads.rotated :]
        attention_backward(grads[0], past, heads.batch, ctx.mask, (*grads_qk, grad_v))
        with label(GRADIENTS):
            grad_norms = torch.empty_like(qkv[:2, 0] if norms is None else norms)
        rotate_backward(grad_rotated, qkv, norms, heads, (grad_qkv[:, : heads.rotated], grad_norms))
        return grad_qkv, None if norms is None else grad_norms, None, None


def _rotated(qkv: Tensor, norms: Tensor | None, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    rotated = qkv.new_empty((qkv.shape[0], heads.rotated, qkv.shape[2]))
    rotate_into(qkv, norms, heads, None, rotated)
    return rotated[:, : heads.heads], rotated[:, heads.heads :], qkv[:, heads.rotated :]
