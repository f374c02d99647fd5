"""RMSNorm: its value, its gradients, and its fusion with quantisation."""

import pytest
import torch
from torch import Tensor

from tritter_model.ops.rms_norm import add_rms_norm_rows, rms_norm, rms_norm_rows
from tritter_model.ops.rows import QuantisedRows, quantise_rows

EPS = 1e-5
SHAPES = [(1, 1), (2, 7), (16, 64), (17, 129), (2047, 33)]
TYPES = [torch.bfloat16, torch.float16, torch.float32]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
in_every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


def some_rows(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Rows of very different sizes, the first of them all zeros."""
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None]
    x[0] = 0 if shape[0] > 1 else 1
    return x.to(dtype)


def assert_equal(got: QuantisedRows, wanted: QuantisedRows) -> None:
    for name in QuantisedRows._fields:
        assert torch.equal(getattr(got, name), getattr(wanted, name)), name


def reference_norm(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x, (x.shape[1],), weight, EPS)


@in_every_shape
@in_every_type
def test_fused_norm_gives_the_bits_of_norm_then_quantise(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, weight = some_rows(shape, dtype), torch.randn(shape[1]).to(dtype)
    assert_equal(rms_norm_rows(x, weight, EPS), quantise_rows(rms_norm(x, weight, EPS)))


@in_every_shape
@in_every_type
def test_addition_and_norm_give_the_bits_of_the_steps_one_by_one(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, delta = some_rows(shape, dtype), torch.randn(shape).to(dtype)
    weight, wanted = torch.randn(shape[1]), x + delta
    got = add_rms_norm_rows(x, delta, weight, EPS)
    assert torch.equal(x, wanted)
    assert_equal(got, rms_norm_rows(wanted, weight, EPS))


def test_norm_and_its_gradients_are_those_of_pytorch_in_float64() -> None:
    x, weight = torch.randn(17, 37, requires_grad=True), torch.randn(37, requires_grad=True)
    grad = torch.randn(17, 37)
    out = rms_norm(x, weight, EPS)
    got = torch.autograd.grad(out, (x, weight), grad)
    wide_x, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    wanted = reference_norm(wide_x, wide_weight)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(wanted, (wide_x, wide_weight), grad.double())
    for ours, theirs in zip(got, grads, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_norm_keeps_its_input_and_one_float_a_row(saved: type) -> None:
    x, weight = torch.randn(17, 37, requires_grad=True), torch.randn(37, requires_grad=True)
    with saved(besides=[x, weight]) as kept:
        rms_norm(x, weight, EPS)
    assert kept.nbytes == 17 * 4


def test_a_master_weight_acts_in_the_type_of_the_rows() -> None:
    """So that a trained norm, stored in that type for inference, is the same norm."""
    x, weight = torch.randn(17, 37).bfloat16(), torch.randn(37)
    assert torch.equal(rms_norm(x, weight, EPS), rms_norm(x, weight.bfloat16(), EPS))


def test_rows_may_lie_apart() -> None:
    """The last token of each sequence is a strided view of the residual stream."""
    x, weight = torch.randn(3, 5, 37), torch.randn(37)
    last = x[:, -1]
    assert torch.equal(rms_norm(last, weight, EPS), rms_norm(last.clone(), weight, EPS))
    assert_equal(rms_norm_rows(last, weight, EPS), rms_norm_rows(last.clone(), weight, EPS))
