"""Kernels of a ternary layer in training: rounding, the product, and its gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_model.ops.grad_weight import add_grad_weight, write_grad_weight
from tritter_model.ops.rows import quantise_rows
from tritter_model.ops.ternary import ternary_linear
from tritter_model.ops.ternary_format import unpack
from tritter_model.ops.ternary_training import (
    ternarise,
    ternary_grad_input,
    trained_ternary_linear,
)

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]
SHAPES = [(1, 17, 1), (2, 129, 3), (16, 64, 40), (17, 83, 37), (66, 530, 70)]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
in_both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative to the norm of what is wanted, or to one where that is nothing."""
    wanted = wanted.double()
    return float((got.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def bound(dtype: torch.dtype) -> float:
    """Half a step for each of the two factors, and the result."""
    return 1.5 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5


@pytest.mark.parametrize("width", [1, 2, 17, 83, 600, 4100])
@in_both_types
def test_weights_round_by_the_mean_magnitude_of_their_output(
    device: torch.device, kernels: None, width: int, dtype: torch.dtype
) -> None:
    weight = (torch.randn(7, width) * torch.logspace(-2, 2, 7)[:, None]).to(dtype)
    weight[3] = 0
    packed, scale = ternarise(weight)
    mean = weight.double().abs().mean(1).clamp(min=1e-5)
    torch.testing.assert_close(scale.double(), mean, rtol=1e-6, atol=0)
    wanted = (weight.float() / scale[:, None]).round().clamp(-1, 1)
    assert torch.equal(unpack(packed, width).float() - 1, wanted)


def test_padding_is_the_weight_zero(device: torch.device, kernels: None) -> None:
    packed, _ = ternarise(torch.randn(3, 81))
    assert (unpack(packed, 84)[:, 81:] == 1).all()


@in_every_shape
@in_both_types
def test_a_trained_layer_computes_what_its_packed_one_will(
    device: torch.device, kernels: None, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    tokens, inputs, outputs = shape
    x, weight = torch.randn(tokens, inputs).to(dtype), torch.randn(outputs, inputs)
    packed = ternary_linear(quantise_rows(x), *ternarise(weight), dtype)
    assert torch.equal(trained_ternary_linear(x, weight), packed)


@in_every_shape
@in_both_types
def test_gradients_are_those_of_the_rounded_factors(
    device: torch.device, kernels: None, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    tokens, inputs, outputs = shape
    x = torch.randn(tokens, inputs).to(dtype).requires_grad_()
    weight = torch.randn(outputs, inputs, requires_grad=True)
    grad = torch.randn(tokens, outputs).to(dtype)
    got = torch.autograd.grad(trained_ternary_linear(x, weight), (x, weight), grad)
    packed, scale = ternarise(weight.detach())
    rows = quantise_rows(x.detach())
    wide = (unpack(packed, inputs).double() - 1) * scale.double()[:, None]
    dequantised = rows.codes.double() * rows.scale.double()[:, None]
    assert error(got[0], grad.double() @ wide) <= bound(dtype)
    assert error(got[1], grad.double().T @ dequantised) <= bound(dtype)


def test_a_gradient_that_is_one_number_for_all_is_taken(
    device: torch.device, kernels: None
) -> None:
    """A sum's gradient is one number, seen through strides of zero."""
    x, weight = (torch.randn(size, 40, requires_grad=True) for size in (5, 9))
    got = torch.autograd.grad(trained_ternary_linear(x, weight).sum(), (x, weight))
    again = torch.autograd.grad(trained_ternary_linear(x, weight), (x, weight), torch.ones(5, 9))
    for ours, theirs in zip(got, again, strict=True):
        assert torch.equal(ours, theirs)


@in_every_shape
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_a_weights_gradient_is_written_or_added(
    device: torch.device, kernels: None, shape: tuple[int, int, int], stored: torch.dtype
) -> None:
    tokens, inputs, outputs = shape
    grad, x = torch.randn(tokens, outputs), torch.randn(tokens, inputs)
    before = torch.randn(outputs, inputs).to(stored)
    product, added = grad.double().T @ x.double(), before.clone()
    write_grad_weight(grad, x, None, written := torch.empty_like(before))
    add_grad_weight(grad, x, None, added)
    assert error(written, product) <= bound(stored)
    assert error(added, before.double() + product) <= bound(stored)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: write_grad_weight(torch.ones(3, 4), torch.ones(2, 5), None, torch.ones(4, 5)),
            r"gradient of float32 \[3, 4\], expected .*\[2, any\]",
        ),
        (
            lambda: add_grad_weight(torch.ones(2, 4), torch.ones(2, 5), None, torch.ones(5, 4)),
            r"weight's gradient of float32 \[5, 4\], expected .*\[4, 5\]",
        ),
        (
            lambda: ternary_grad_input(
                torch.ones(2, 3), *ternarise(torch.ones(3, 40)), torch.ones(2, 48)
            ),
            r"packed weights of uint8 \[3, 10\], expected uint8 \[any, 12\]",
        ),
        (lambda: ternarise(torch.ones(3, 40).int()), r"the weights of int32 \[3, 40\]"),
        (lambda: ternarise(torch.ones(40, 3).T), "the weights with strides.*contiguous"),
    ],
)
def test_what_a_kernel_does_not_take_is_refused(
    device: torch.device, kernels: None, call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
