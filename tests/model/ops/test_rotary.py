"""QK-norm and rotation, against complex numbers in float64."""

import pytest
import torch
from torch import Tensor

from tests.model.places import at
from tritter_model.ops.rotary import Heads, rotate_, rotate_into
from tritter_model.ops.rotary_backward import rotate_backward

EPS, THETA = 1e-5, 500_000.0
SHAPES = [(1, 1, 1, 1, 2), (1, 17, 4, 2, 20), (3, 5, 2, 2, 64), (2, 16, 5, 1, 6)]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
with_and_without_norms = pytest.mark.parametrize("normed", [True, False])


def reference(qk: Tensor, norms: Tensor | None, heads: Heads, position: int) -> Tensor:
    """Each pair (d, d + D/2) is a complex number, turned by its position times its frequency."""
    if norms is not None:
        weights = norms[[0] * heads.heads + [1] * heads.kv_heads]
        qk = qk * (qk.square().mean(-1, keepdim=True) + EPS).rsqrt() * weights
    half, tokens = qk.shape[-1] // 2, qk.shape[0] // heads.batch
    pairs = torch.complex(qk[..., :half], qk[..., half:])
    frequencies = THETA ** -(2 * torch.arange(half, dtype=torch.float64) / qk.shape[-1])
    angles = torch.outer(torch.arange(tokens) + float(position), frequencies)
    turned = pairs * torch.polar(torch.ones_like(angles), angles).repeat(heads.batch, 1)[:, None]
    return torch.cat((turned.real, turned.imag), -1)


def some(shape: tuple[int, ...], normed: bool) -> tuple[Tensor, Tensor | None, Heads]:
    batch, tokens, heads, kv_heads, width = shape
    qkv = torch.randn(batch * tokens, heads + 2 * kv_heads, width)
    norms = torch.randn(2, width) if normed else None
    return qkv, norms, Heads(batch, heads, kv_heads, THETA, EPS)


def wide(norms: Tensor | None) -> Tensor | None:
    return None if norms is None else norms.double()


@in_every_shape
@with_and_without_norms
def test_rotation_is_multiplication_by_a_complex_number(
    shape: tuple[int, ...], normed: bool
) -> None:
    qkv, norms, heads = some(shape, normed)
    qk = qkv[:, : heads.rotated]
    out = torch.empty_like(qk)
    rotate_into(qkv, norms, heads, at(131_055), out)
    wanted = reference(qk.double(), wide(norms), heads, 131_055)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)


@in_every_shape
@with_and_without_norms
def test_rotating_in_place_leaves_the_values_alone(shape: tuple[int, ...], normed: bool) -> None:
    qkv, norms, heads = some(shape, normed)
    out = torch.empty_like(qkv[:, : heads.rotated])
    rotate_into(qkv, norms, heads, at(3), out)
    values = qkv[:, heads.rotated :].clone()
    assert rotate_(qkv, norms, heads, at(3)) is qkv
    assert torch.equal(qkv[:, : heads.rotated], out)
    assert torch.equal(qkv[:, heads.rotated :], values)


def test_a_chunk_at_its_position_is_that_part_of_the_whole() -> None:
    qkv, norms, heads = some((1, 23, 4, 2, 20), True)
    whole, part = (torch.empty(n, heads.rotated, 20) for n in (23, 6))
    rotate_into(qkv, norms, heads, None, whole)
    rotate_into(qkv[17:], norms, heads, at(17), part)
    assert torch.equal(part, whole[17:])


@pytest.mark.parametrize("position", [0, 4095, 131071])
def test_scores_depend_on_the_distance_alone(position: int) -> None:
    """What makes a rotation a position embedding."""
    qkv, _, heads = some((1, 4, 1, 1, 64), False)
    near, far = (torch.empty(4, 2, 64) for _ in range(2))
    rotate_into(qkv, None, heads, at(0), near)
    rotate_into(qkv, None, heads, at(position), far)
    scores = [(x[:, 0] @ x[:, 1].T).double() for x in (near, far)]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-4)


@in_every_shape
@with_and_without_norms
def test_gradients_are_those_of_pytorch_in_float64(shape: tuple[int, ...], normed: bool) -> None:
    qkv, norms, heads = some(shape, normed)
    grad = torch.randn(qkv.shape[0], heads.rotated, qkv.shape[2])
    grad_qk, grad_norms = torch.empty_like(grad), torch.empty(2, qkv.shape[2])
    rotate_backward(grad, qkv, norms, heads, (grad_qk, grad_norms))
    leaf = qkv[:, : heads.rotated].double().requires_grad_()
    leaves = [leaf] if norms is None else [leaf, norms.double().requires_grad_()]
    out = reference(leaf, leaves[1] if normed else None, heads, 0)
    wanted = torch.autograd.grad(out, leaves, grad.double())
    torch.testing.assert_close(grad_qk.double(), wanted[0], rtol=1e-4, atol=1e-4)
    if normed:
        torch.testing.assert_close(grad_norms.double(), wanted[1], rtol=1e-4, atol=1e-4)
