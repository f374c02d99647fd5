"""Attention over whole sequences, against PyTorch's in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tritter_model.ops import attention as operators
from tritter_model.ops.attention import Mask, attention
from tritter_model.ops.rotary import Heads, rotate_into
from tritter_model.ops.self_attention import self_attention

MASKS = [
    Mask(),
    Mask(causal=False),
    Mask(window=1),
    Mask(window=5),
    Mask(window=5, sinks=2),
    Mask(window=1, sinks=30),
    Mask(window=100, sinks=4),
]
SHAPES = [(1, 1, 1, 1, 4), (1, 17, 4, 2, 20), (3, 16, 6, 1, 10), (2, 2, 3, 3, 8)]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
under_every_mask = pytest.mark.parametrize("mask", MASKS, ids=str)


def sees(mask: Mask, query: int, key: int) -> bool:
    """The mask, one query and key at a time."""
    if mask.causal and key > query:
        return False
    return not mask.window or query - key < mask.window or key < mask.sinks


def reference(q: Tensor, k: Tensor, v: Tensor, batch: int, mask: Mask) -> tuple[Tensor, Tensor]:
    """Output [T, A * D] and log-sum-exp [T, A], as PyTorch computes them."""
    tokens = q.shape[0] // batch
    allowed = torch.tensor([[sees(mask, i, j) for j in range(tokens)] for i in range(tokens)])
    q, k, v = (x.unflatten(0, (batch, tokens)).transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, allowed)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~allowed, -torch.inf)
    lse = scores.logsumexp(-1)
    return out.transpose(1, 2).flatten(0, 1).flatten(1), lse.transpose(1, 2).flatten(0, 1)


def some(shape: tuple[int, ...]) -> tuple[Tensor, Heads]:
    batch, tokens, heads, kv_heads, width = shape
    qkv = torch.randn(batch * tokens, heads + 2 * kv_heads, width)
    return qkv, Heads(batch, heads, kv_heads, 500_000.0, 1e-5)


@in_every_shape
@under_every_mask
def test_output_and_log_sum_exp_are_those_of_pytorch(shape: tuple[int, ...], mask: Mask) -> None:
    qkv, heads = some(shape)
    q, k, v = qkv.split([heads.heads, heads.kv_heads, heads.kv_heads], 1)
    got = attention(q, k, v, heads.batch, mask)
    wanted = reference(q.double(), k.double(), v.double(), heads.batch, mask)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_rows_are_taken_a_block_at_a_time_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qkv, heads = some((2, 17, 4, 2, 20))
    qkv.requires_grad_()
    grad = torch.randn(34, 80)
    results = []
    for rows in (512, 5):
        monkeypatch.setattr(operators, "REFERENCE_ROWS", rows)
        out = self_attention(qkv, None, heads, Mask(window=6, sinks=1))
        results.append((out, *torch.autograd.grad(out, qkv, grad)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@in_every_shape
@under_every_mask
@pytest.mark.parametrize("normed", [True, False])
def test_gradients_are_those_of_pytorch_in_float64(
    shape: tuple[int, ...], mask: Mask, normed: bool
) -> None:
    """Gradients of norm, rotation and attention together. The rotation has a test of its own."""
    qkv, heads = some(shape)
    norms = torch.randn(2, shape[-1]) if normed else None
    leaves = [x.requires_grad_() for x in (qkv, norms) if x is not None]
    out = self_attention(qkv, norms, heads, mask)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, grad)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    wanted = differentiable(wide[0], wide[1] if normed else None, heads, mask)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(got, torch.autograd.grad(wanted, wide, grad.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)


def differentiable(qkv: Tensor, norms: Tensor | None, heads: Heads, mask: Mask) -> Tensor:
    q, k, v = qkv.split([heads.heads, heads.kv_heads, heads.kv_heads], 1)
    if norms is not None:
        q, k = (
            F.rms_norm(x, x.shape[-1:], w, heads.eps) for x, w in ((q, norms[0]), (k, norms[1]))
        )
    turn = rotation(qkv.shape[0] // heads.batch, qkv.shape[2], heads.theta).repeat(
        heads.batch, 1, 1
    )
    q, k = (torch.einsum("ted,thd->the", turn, x) for x in (q, k))
    return reference(q, k, v, heads.batch, mask)[0]


def rotation(tokens: int, width: int, theta: float) -> Tensor:
    """float64 [tokens, D, D]: the rotation of each position, as a matrix."""
    turn = torch.zeros(tokens, width, width, dtype=torch.float64)
    half = width // 2
    for position in range(tokens):
        for d in range(half):
            angle = torch.tensor(position * theta ** (-2 * d / width), dtype=torch.float64)
            turn[position, d, d] = turn[position, d + half, d + half] = angle.cos()
            turn[position, d, d + half], turn[position, d + half, d] = -angle.sin(), angle.sin()
    return turn


def test_what_is_kept_is_the_projection_the_output_and_its_log_sum_exp(saved: Any) -> None:
    qkv, heads = some((2, 17, 4, 2, 20))
    qkv, norms = qkv.bfloat16().requires_grad_(), torch.ones(2, 20, requires_grad=True)
    with saved(besides=[qkv, norms]) as kept:
        self_attention(qkv, norms, heads, Mask())
    tokens, query_heads = 34, 4
    assert kept.nbytes == tokens * query_heads * (20 * 2 + 4)


def test_the_norms_act_in_the_type_of_the_queries() -> None:
    qkv, heads = some((1, 5, 2, 1, 8))
    qkv, norms = qkv.bfloat16(), torch.randn(2, 8)
    outs = [torch.empty_like(qkv[:, : heads.rotated]) for _ in range(2)]
    rotate_into(qkv, norms, heads, None, outs[0])
    rotate_into(qkv, norms.bfloat16(), heads, None, outs[1])
    assert torch.equal(*outs)
