"""Row operators: normalised, gated and quantised rows, and their gradients."""

import pytest
import torch
from torch import Tensor

from tritter_model.ops.gated_relu2 import gated_relu2, gated_relu2_rows
from tritter_model.ops.rms_norm import rms_norm, rms_norm_rows
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


@in_every_shape
@in_every_type
def test_codes_times_scale_are_the_row_to_half_a_step(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x = some_rows(shape, dtype)
    rows = quantise_rows(x)
    largest = x.double().abs().amax(1)
    torch.testing.assert_close(rows.scale.double(), largest.clamp(min=1e-5) / 127)
    error = (rows.codes * rows.scale[:, None] - x.float()).abs()
    assert (error <= rows.scale[:, None] * 0.5001).all()
    assert rows.codes.abs().max() <= 127
    if x.any():
        assert (rows.codes.abs().amax(1)[largest > 1e-5] == 127).all()


@in_every_shape
def test_totals_are_the_sums_of_the_codes(shape: tuple[int, int]) -> None:
    rows = quantise_rows(some_rows(shape, torch.bfloat16))
    assert rows.total.dtype == torch.int32
    assert torch.equal(rows.total.long(), rows.codes.long().sum(1))


def test_the_total_of_a_wide_row_of_equal_codes_does_not_overflow() -> None:
    rows = quantise_rows(torch.ones(1, 11008))
    assert rows.total.item() == 127 * 11008


@in_every_shape
@in_every_type
def test_fused_norm_gives_the_bits_of_norm_then_quantise(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, weight = some_rows(shape, dtype), torch.randn(shape[1]).to(dtype)
    assert_equal(rms_norm_rows(x, weight, EPS), quantise_rows(rms_norm(x, weight, EPS)))


@in_every_shape
@in_every_type
def test_fused_gate_gives_the_bits_of_gate_then_quantise(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    gate_up = torch.randn(shape[0], 2 * shape[1]).to(dtype)
    assert_equal(gated_relu2_rows(gate_up), quantise_rows(gated_relu2(gate_up)))


def reference_norm(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x, (x.shape[1],), weight, EPS)


def reference_gate(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, 1)
    return gate.relu() ** 2 * up


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


def test_gate_and_its_gradient_are_those_of_pytorch_in_float64() -> None:
    gate_up, grad = torch.randn(17, 74, requires_grad=True), torch.randn(17, 37)
    out = gated_relu2(gate_up)
    (got,) = torch.autograd.grad(out, gate_up, grad)
    wide = gate_up.detach().double().requires_grad_()
    wanted = reference_gate(wide)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-6)
    (theirs,) = torch.autograd.grad(wanted, wide, grad.double())
    torch.testing.assert_close(got.double(), theirs, rtol=1e-5, atol=1e-6)


def test_norm_keeps_its_input_and_one_float_a_row(saved: type) -> None:
    x, weight = torch.randn(17, 37, requires_grad=True), torch.randn(37, requires_grad=True)
    with saved(besides=[x, weight]) as kept:
        rms_norm(x, weight, EPS)
    assert kept.nbytes == 17 * 4


def test_gate_keeps_its_input_alone(saved: type) -> None:
    gate_up = torch.randn(17, 74, requires_grad=True)
    with saved(besides=[gate_up]) as kept:
        gated_relu2(gate_up)
    assert kept.nbytes == 0


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
