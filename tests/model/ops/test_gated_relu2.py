"""relu(gate)² · up: its value, its gradient, and its fusion with quantisation."""

import pytest
import torch
from torch import Tensor

from tritter_model.ops.gated_relu2 import gated_relu2, gated_relu2_rows
from tritter_model.ops.rows import quantise_rows

SHAPES = [(1, 1), (2, 7), (16, 64), (17, 129), (2047, 33)]
TYPES = [torch.bfloat16, torch.float16, torch.float32]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
in_every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


def reference_gate(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, 1)
    return gate.relu() ** 2 * up


@in_every_shape
@in_every_type
def test_fused_gate_gives_the_bits_of_gate_then_quantise(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    gate_up = torch.randn(shape[0], 2 * shape[1]).to(dtype)
    pairs = zip(gated_relu2_rows(gate_up), quantise_rows(gated_relu2(gate_up)), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_gate_and_its_gradient_are_those_of_pytorch_in_float64() -> None:
    gate_up, grad = torch.randn(17, 74, requires_grad=True), torch.randn(17, 37)
    out = gated_relu2(gate_up)
    (got,) = torch.autograd.grad(out, gate_up, grad)
    wide = gate_up.detach().double().requires_grad_()
    wanted = reference_gate(wide)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-6)
    (theirs,) = torch.autograd.grad(wanted, wide, grad.double())
    torch.testing.assert_close(got.double(), theirs, rtol=1e-5, atol=1e-6)


def test_gate_keeps_its_input_alone(saved: type) -> None:
    gate_up = torch.randn(17, 74, requires_grad=True)
    with saved(besides=[gate_up]) as kept:
        gated_relu2(gate_up)
    assert kept.nbytes == 0
