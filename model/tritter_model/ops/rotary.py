"""Queries and keys made ready for attention: QK-norm (RMSNorm per head), then RoPE.

Shapes: T = batch * chunk tokens, sequence by sequence; A query heads, G key-value heads, D their
width. `qkv` is [T, A + 2G, D]: queries, keys, values. The rotation pairs element d with d + D/2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tritter_model.ops.registry import operator


@dataclass(frozen=True)
class Heads:
    """How a projection's rows split into heads, and how queries and keys are rotated."""

    batch: int
    heads: int
    kv_heads: int
    theta: float
    eps: float

    @property
    def rotated(self) -> int:
        """Heads that are normalised and rotated: queries and keys."""
        return self.heads + self.kv_heads


def rotate_(qkv: Tensor, norms: Tensor | None, heads: Heads, position: Tensor | None) -> Tensor:
    """Normalise and rotate the queries and keys of `qkv` in place.

    Args:
        qkv: [T, A + 2G, D].
        norms: [2, D], the weights of the query norm and the key norm; None: no QK-norm.
        heads: the split of `qkv`.
        position: int32 [1], absolute position of each sequence's first token; None: 0.
    """
    rotate_into(qkv, norms, heads, position, qkv[:, : heads.rotated])
    return qkv


def rotate_into(
    qkv: Tensor, norms: Tensor | None, heads: Heads, position: Tensor | None, out: Tensor
) -> None:
    """Write the normalised, rotated queries and keys of `qkv` to `out`, [T, A + G, D]."""
    _rotate(qkv, norms, position, heads.batch, heads.heads, heads.theta, heads.eps, out)


@operator(
    "rotate(Tensor qkv, Tensor? norms, Tensor? position, int batch, int heads, float theta,"
    " float eps, Tensor(a!) out) -> ()"
)
def _rotate(
    qkv: Tensor, norms: Tensor | None, position: Tensor | None, batch: int, heads: int,
    theta: float, eps: float, out: Tensor,
) -> None:  # fmt: skip
    x = qkv[:, : out.shape[1]].float()
    if norms is not None:
        x = x * _rstd(x, eps) * _by_head(norms.to(qkv.dtype), heads, out.shape[1])
    start = 0 if position is None else int(position)
    out.copy_(_turn(x, _angles(x, batch, start, theta)))


def rotate_backward(
    grad: Tensor, qkv: Tensor, norms: Tensor | None, heads: Heads, grads: tuple[Tensor, Tensor]
) -> None:
    """Fill the gradients of `rotate_into` without a position.

    `grads` are those of qkv's first A + G heads and of `norms`.
    """
    _rotate_backward(grad, qkv, norms, heads.batch, heads.heads, heads.theta, heads.eps, *grads)


@operator(
    "rotate_backward(Tensor grad, Tensor qkv, Tensor? norms, int batch, int heads, float theta,"
    " float eps, Tensor(a!) grad_qkv, Tensor(b!) grad_norms) -> ()"
)
def _rotate_backward(
    grad: Tensor, qkv: Tensor, norms: Tensor | None, batch: int, heads: int,
    theta: float, eps: float, grad_qkv: Tensor, grad_norms: Tensor,
) -> None:  # fmt: skip
    turned = _turn(grad.float(), -_angles(grad, batch, 0, theta))
    if norms is None:
        grad_qkv.copy_(turned)
        return
    x = qkv[:, : grad.shape[1]].float()
    rstd, weight = _rstd(x, eps), _by_head(norms.to(qkv.dtype), heads, grad.shape[1])
    unit, scaled = x * rstd, turned * weight
    grad_qkv.copy_((scaled - unit * (scaled * unit).mean(-1, keepdim=True)) * rstd)
    by_head = (turned * unit).sum(0)
    grad_norms[0] = by_head[:heads].sum(0)
    grad_norms[1] = by_head[heads:].sum(0)


def _rstd(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _by_head(norms: Tensor, heads: int, rotated: int) -> Tensor:
    """float32 [A + G, D]: each head's norm weight."""
    which = torch.arange(rotated, device=norms.device) >= heads
    return norms.float()[which.long()]


def _angles(x: Tensor, batch: int, position: int, theta: float) -> Tensor:
    """[T, 1, D/2] angles of each token's rotation."""
    tokens, half = x.shape[0] // batch, x.shape[2] // 2
    inverse = theta ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    positions = torch.arange(position, position + tokens, device=x.device, dtype=torch.float64)
    return torch.outer(positions, inverse).float().repeat(batch, 1)[:, None]


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
