"""Attention over one whole sequence: training, and the vision tower.

Shapes: T = batch * S tokens, sequence by sequence; A query heads, G key-value heads (A a multiple
of G), D their width. Softmax in float32; what is kept for the backward pass is the output and one
float32 (the log of the sum of exponentials) a query and head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritter_model.checkpointing import kept
from tritter_model.labels import GRADIENTS, label
from tritter_model.ops.registry import operator, scratch
from tritter_model.ops.rotary import Heads, rotate_backward, rotate_into

REFERENCE_ROWS = 512


class Mask(NamedTuple):
    """Which keys a query sees: those before it, within the window (0: all), and the sinks."""

    causal: bool = True
    window: int = 0
    sinks: int = 0

    def visible(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether each query sees each key, [queries, keys], from absolute positions."""
        distance = queries[:, None] - keys[None]
        seen = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.window:
            seen &= (distance < self.window) | (keys[None] < self.sinks)
        return seen


def attention(q: Tensor, k: Tensor, v: Tensor, batch: int, mask: Mask) -> tuple[Tensor, Tensor]:
    """Attention of each sequence over itself.

    Args:
        q: [T, A, D]; k, v: [T, G, D]; any strides.
        k: keys.
        v: values.
        batch: number of sequences in T.
        mask: what each query sees.

    Returns:
        The output, contiguous [T, A * D], and its log-sum-exp, float32 [T, A].
    """
    out = q.new_empty((q.shape[0], q.shape[1] * q.shape[2]))
    lse = q.new_empty((q.shape[0], q.shape[1]), dtype=torch.float32)
    _attention(q, k, v, batch, *mask, out, lse)
    return out, lse


@operator(
    "attention(Tensor q, Tensor k, Tensor v, int batch, bool causal, int window, int sinks,"
    " Tensor(a!) out, Tensor(b!) lse) -> ()"
)
def _attention(
    q: Tensor, k: Tensor, v: Tensor, batch: int, causal: bool, window: int, sinks: int,
    out: Tensor, lse: Tensor,
) -> None:  # fmt: skip
    for part in _parts(q, k, batch, Mask(causal, window, sinks)):
        scores = part.scores(q, k)
        normaliser = scores.logsumexp(-1)
        weights = (scores - normaliser[..., None]).exp_()
        value = weights @ v[part.keys, part.kv_head].float()
        out.view(q.shape)[part.rows, part.heads] = value.transpose(0, 1).to(out.dtype)
        lse[part.rows, part.heads] = normaliser.T


@dataclass(frozen=True)
class _Part:
    """The queries of one group of heads and one block of rows, and the keys of their sequence."""

    rows: slice
    keys: slice
    heads: slice
    kv_head: int
    visible: Tensor

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """float32 [heads, rows, keys], scaled, minus infinity where a key is not visible."""
        queries = q[self.rows, self.heads].float().transpose(0, 1)
        scores = queries @ k[self.keys, self.kv_head].float().T * q.shape[2] ** -0.5
        masked: Tensor = scores.masked_fill(~self.visible, float("-inf"))
        return masked


def _parts(q: Tensor, k: Tensor, batch: int, mask: Mask) -> list[_Part]:
    tokens, group = q.shape[0] // batch, q.shape[1] // k.shape[1]
    positions = torch.arange(tokens, device=q.device)
    return [
        _Part(
            rows=slice(start + first, start + min(first + REFERENCE_ROWS, tokens)),
            keys=slice(start, start + tokens),
            heads=slice(head * group, (head + 1) * group),
            kv_head=head,
            visible=mask.visible(positions[first : first + REFERENCE_ROWS], positions),
        )
        for start in range(0, q.shape[0], tokens)
        for first in range(0, tokens, REFERENCE_ROWS)
        for head in range(k.shape[1])
    ]


@operator(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,"
    " int batch, bool causal, int window, int sinks, Tensor(a!) delta,"
    " Tensor(b!) grad_q, Tensor(c!) grad_k, Tensor(d!) grad_v) -> ()"
)
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    batch: int, causal: bool, window: int, sinks: int,
    delta: Tensor, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor,
) -> None:  # fmt: skip
    slopes = grad.view(q.shape).float()
    delta.copy_((slopes * out.view(q.shape).float()).sum(-1))
    wide_k, wide_v = (torch.zeros(k.shape, device=k.device) for _ in range(2))
    for part in _parts(q, k, batch, Mask(causal, window, sinks)):
        weights = (part.scores(q, k) - lse[part.rows, part.heads].T[..., None]).exp_()
        slope = slopes[part.rows, part.heads].transpose(0, 1)
        wide_v[part.keys, part.kv_head] += (weights.transpose(1, 2) @ slope).sum(0)
        inner = slope @ v[part.keys, part.kv_head].float().T
        inner -= delta[part.rows, part.heads].T[..., None]
        inner *= weights * q.shape[2] ** -0.5
        grad_q[part.rows, part.heads] = (
            (inner @ k[part.keys, part.kv_head].float()).transpose(0, 1).to(grad_q.dtype)
        )
        queries = q[part.rows, part.heads].float().transpose(0, 1)
        wide_k[part.keys, part.kv_head] += (inner.transpose(1, 2) @ queries).sum(0)
    grad_k.copy_(wide_k)
    grad_v.copy_(wide_v)


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
        _attention_backward(
            grads[0], q, k, v, out, lse, heads.batch, *ctx.mask, scratch(lse.shape, lse, lse.dtype),
            grad_rotated[:, : heads.heads], grad_rotated[:, heads.heads :],
            grad_qkv[:, heads.rotated :],
        )  # fmt: skip
        with label(GRADIENTS):
            grad_norms = torch.empty_like(qkv[:2, 0] if norms is None else norms)
        rotate_backward(grad_rotated, qkv, norms, heads, (grad_qkv[:, : heads.rotated], grad_norms))
        return grad_qkv, None if norms is None else grad_norms, None, None


def _rotated(qkv: Tensor, norms: Tensor | None, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    rotated = qkv.new_empty((qkv.shape[0], heads.rotated, qkv.shape[2]))
    rotate_into(qkv, norms, heads, None, rotated)
    return rotated[:, : heads.heads], rotated[:, heads.heads :], qkv[:, heads.rotated :]
