"""Kernels on rows: norms, the MLP's activation, and their quantisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tritter_model.ops.gated_relu2 import gated_relu2, gated_relu2_rows
from tritter_model.ops.jit import jit
from tritter_model.ops.rms_norm import add_rms_norm_rows, rms_norm, rms_norm_rows
from tritter_model.ops.rows import QuantisedRows, quantise_rows, sum_in_pairs

if TYPE_CHECKING:
    import triton.language as tl  # noqa: TC004  (Triton's language is there from a launch on)

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]
EPS = 1e-5
TYPES = [torch.bfloat16, torch.float16, torch.float32]
in_every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
SHAPES = [(1, 1), (2, 7), (16, 64), (17, 4097)]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def some_rows(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Rows of very different sizes, the first of several all zeros."""
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None]
    x[: shape[0] - 1][:1] = 0
    return x.to(dtype)


def assert_equal(got: QuantisedRows, wanted: QuantisedRows) -> None:
    for name, ours, theirs in zip(QuantisedRows._fields, got, wanted, strict=True):
        assert torch.equal(ours, theirs), name


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative to the norm of what is wanted."""
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).norm() / wanted.norm())


@in_every_shape
@in_every_type
def test_codes_are_those_of_the_reference(
    device: torch.device, both: Both, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x = some_rows(shape, dtype)
    assert_equal(*both(lambda: quantise_rows(x)))


@pytest.mark.parametrize("operator", ["quantise", "norm", "gate"])
def test_many_rows_are_each_quantised(device: torch.device, both: Both, operator: str) -> None:
    """2,047 of them; small widths keep the interpreter quick."""
    x, weight = some_rows((2047, 34), torch.bfloat16), torch.ones(34)
    compute = {
        "quantise": lambda: quantise_rows(x),
        "norm": lambda: rms_norm_rows(x, weight, EPS),
        "gate": lambda: gated_relu2_rows(x),
    }[operator]
    ours, theirs = both(compute)
    assert torch.equal(ours.total, ours.codes.sum(1, dtype=torch.int32))
    torch.testing.assert_close(ours.scale, theirs.scale, rtol=2**-7, atol=0)
    values = [rows.codes * rows.scale[:, None] for rows in (ours, theirs)]
    assert ((values[0] - values[1]).abs() <= 1.01 * theirs.scale[:, None]).all()


def test_halves_round_to_the_even_code(device: torch.device, kernels: None) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]])
    assert quantise_rows(x).codes.tolist() == [[127, 0, 2, 2, 0, -2, -126]]


@in_every_type
def test_fused_norm_gives_the_bits_of_norm_then_quantise(
    device: torch.device, kernels: None, dtype: torch.dtype
) -> None:
    x, weight = some_rows((17, 1029), dtype), torch.randn(1029).to(dtype)
    assert_equal(rms_norm_rows(x, weight, EPS), quantise_rows(rms_norm(x, weight, EPS)))


@in_every_shape
@in_every_type
def test_addition_and_norm_give_the_bits_of_the_steps_one_by_one(
    device: torch.device, kernels: None, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, delta = some_rows(shape, dtype), torch.randn(shape).to(dtype)
    weight, wanted = torch.randn(shape[1]), x + delta
    got = add_rms_norm_rows(x, delta, weight, EPS)
    assert torch.equal(x, wanted)
    assert_equal(got, rms_norm_rows(wanted, weight, EPS))
    assert_equal(got, quantise_rows(rms_norm(wanted, weight, EPS)))


def test_addition_and_norm_take_rows_that_lie_apart(device: torch.device, kernels: None) -> None:
    x, delta, weight = torch.randn(3, 5, 74), torch.randn(3, 2, 74), torch.randn(74)
    wanted = x.clone()
    wanted[:, -1] += delta[:, 0]
    got = add_rms_norm_rows(x[:, -1], delta[:, 0], weight, EPS)
    assert torch.equal(x, wanted)
    assert_equal(got, rms_norm_rows(wanted[:, -1], weight, EPS))


@jit
def _sum_kernel(x, out, BLOCK: tl.constexpr):
    tl.store(out, sum_in_pairs(tl.load(x + tl.arange(0, BLOCK)), BLOCK))


@pytest.mark.parametrize("size", [2, 128, 16_384])
def test_numbers_are_added_up_in_pairs(device: torch.device, size: int) -> None:
    """Their sizes differ so much that another order gives another sum."""
    x = torch.randn(size) * torch.logspace(-4, 4, size)[torch.randperm(size)]
    sums, got = x, torch.empty(1)
    while len(sums) > 1:
        sums = sums[::2] + sums[1::2]
    _sum_kernel[(1,)](x, got, BLOCK=size)
    assert torch.equal(got, sums)


@in_every_type
def test_fused_gate_gives_the_bits_of_gate_then_quantise(
    device: torch.device, kernels: None, dtype: torch.dtype
) -> None:
    gate_up = torch.randn(17, 2 * 1029).to(dtype)
    assert_equal(gated_relu2_rows(gate_up), quantise_rows(gated_relu2(gate_up)))


def norm_and_gradients(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    out = rms_norm(*leaves, EPS)
    return out, *torch.autograd.grad(out, leaves, grad)


@in_every_shape
@in_every_type
def test_norm_and_its_gradients_are_those_of_pytorch(
    device: torch.device, kernels: None, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[1])
    grad = torch.randn(shape).to(dtype)
    got = norm_and_gradients(x, weight, grad)
    leaves = [x.double().requires_grad_(), weight.to(dtype).double().requires_grad_()]
    out = F.rms_norm(leaves[0], (shape[1],), leaves[1], EPS)
    wanted = (out, *torch.autograd.grad(out, leaves, grad.double()))
    bound = max(torch.finfo(dtype).eps, 1e-5)
    for ours, theirs in zip(got, wanted, strict=True):
        worst = (ours - theirs).detach().abs().max()
        assert worst <= bound * (theirs.detach().abs().max() + 1)


def gate_and_gradient(gate_up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = gate_up.clone().requires_grad_()
    out = gated_relu2(leaf)
    return out, torch.autograd.grad(out, leaf, grad)[0]


@in_every_shape
@in_every_type
def test_gate_and_its_gradient_are_the_bits_of_the_reference(
    device: torch.device, both: Both, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    gate_up, grad = torch.randn(shape[0], 2 * shape[1]).to(dtype), torch.randn(shape).to(dtype)
    for ours, theirs in zip(*both(lambda: gate_and_gradient(gate_up, grad)), strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_that_are_one_number_for_all_are_taken(device: torch.device, both: Both) -> None:
    """A sum's gradient is one number, seen through strides of zero."""
    x, weight = torch.randn(5, 70), torch.randn(70)
    one = torch.ones(()).expand(5, 70)
    for ours, theirs in zip(*both(lambda: norm_and_gradients(x, weight, one)), strict=True):
        assert error(ours, theirs) < 1e-5
    for ours, theirs in zip(
        *both(lambda: gate_and_gradient(torch.cat((x, x), 1), one)), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_rows_may_lie_apart(device: torch.device, kernels: None) -> None:
    x, weight = torch.randn(3, 5, 74), torch.randn(74)
    last = x[:, -1]
    assert_equal(rms_norm_rows(last, weight, EPS), rms_norm_rows(last.clone(), weight, EPS))
    assert_equal(gated_relu2_rows(last), gated_relu2_rows(last.clone()))
    assert torch.equal(rms_norm(last, weight, EPS), rms_norm(last.clone(), weight, EPS))


def added(x: Tensor, delta: Tensor) -> QuantisedRows:
    return add_rms_norm_rows(x, delta, torch.ones(7), EPS)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda: quantise_rows(torch.ones(2, 70_000)), "got rows 70000 wide.*at most 65536"),
        (lambda: quantise_rows(torch.ones(2, 7).int()), r"got rows of int32 \[2, 7\]"),
        (lambda: quantise_rows(torch.ones(7, 2).T), "got rows with strides.*contiguous"),
        (lambda: rms_norm_rows(torch.ones(2, 7), torch.ones(8), EPS), r"of float32 \[8\].*\[7\]"),
        (lambda: rms_norm(torch.ones(2, 7), torch.ones(8), EPS), r"of float32 \[8\].*\[7\]"),
        (lambda: added(torch.ones(2, 7), torch.ones(2, 8)), r"added to them of float32 \[2, 8\]"),
        (lambda: added(torch.ones(2, 7), torch.ones(2, 7).half()), "added to them of float16"),
        (lambda: added(torch.ones(2, 7), torch.ones(7, 2).T), "added to them with strides"),
        (lambda: gated_relu2_rows(torch.ones(2, 7)), r"got gate and up of float32 \[2, 7\].*6"),
    ],
)  # fmt: skip
def test_what_a_kernel_does_not_take_is_refused(
    device: torch.device, kernels: None, compute: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compute()
