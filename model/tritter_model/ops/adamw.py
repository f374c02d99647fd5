"""A step of AdamW (Loshchilov and Hutter, 2019), moments in float32.

Parameter, gradient and moments have one shape, without gaps; the step reads and writes each once.
Every product, sum, quotient and root is rounded by itself: kernel and reference give the same bits,
but for the parameter on a CPU, where PyTorch's root is not always the nearest float.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritter_model.ops.checks import FLOATS, expect, expect_contiguous
from tritter_model.ops.jit import interpreted, jit
from tritter_model.ops.registry import operator
from tritter_model.ops.rows import product

if TYPE_CHECKING:
    import triton.language as tl

BLOCK = 1024
SLICE = 1 << 20
"""Elements that the references take at a time."""


def adamw_(
    parameter: Tensor, grad: Tensor, moments: tuple[Tensor, Tensor], rates: list[float], steps: int
) -> None:
    """Step a parameter and its two moments.

    Args:
        parameter: any float type.
        grad: its gradient, any float type.
        moments: float32, zero before the first step.
        rates: learning rate, decay of the first and of the second moment, weight decay, epsilon.
        steps: how many there were, this one included.

    Raises:
        ValueError: shapes or types that do not fit, or tensors with gaps.
    """
    expect_parameter(parameter, grad)
    for name, moment in zip(("first", "second"), moments, strict=True):
        expect(f"the {name} moment", moment, torch.float32, *parameter.shape)
        expect_contiguous(f"the {name} moment", moment)
    _adamw(parameter, grad, *moments, factors(rates, steps))


def expect_parameter(parameter: Tensor, grad: Tensor) -> None:
    """Check what every optimizer's step is given.

    Raises:
        ValueError: it cannot be stepped.
    """
    expect("the parameter", parameter, FLOATS, *parameter.shape)
    expect("its gradient", grad, FLOATS, *parameter.shape)
    expect_contiguous("the parameter", parameter)
    expect_contiguous("its gradient", grad)


def factors(rates: list[float], steps: int) -> list[float]:
    """The numbers that a step multiplies by, the same for every element.

    What the parameter keeps; the step's size with the first moment's bias taken off; shares of the
    gradient in the first moment, of the old one and of the gradient in the second; what takes the
    second moment's bias off; epsilon.
    """
    lr, beta1, beta2, decay, eps = rates
    size, unbiased = lr / (1 - beta1**steps), 1 / (1 - beta2**steps)
    return [1 - lr * decay, size, 1 - beta1, beta2, 1 - beta2, unbiased, eps]


@operator(
    "adamw(Tensor(a!) parameter, Tensor grad, Tensor(b!) first, Tensor(c!) second,"
    " float[] factors) -> ()"
)
def _adamw(
    parameter: Tensor, grad: Tensor, first: Tensor, second: Tensor, factors: list[float]
) -> None:
    for p, g, m, v in slices(parameter, grad, first, second):
        step(p, g.float(), m, v, factors)


def slices(*tensors: Tensor) -> Iterable[list[Tensor]]:
    """Flat pieces of each, so that what a reference computes on the way stays small."""
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), SLICE):
        yield [tensor[start : start + SLICE] for tensor in flat]


def step(p: Tensor, g: Tensor, m: Tensor, v: Tensor, factors: list[float]) -> None:
    """Step pieces of a parameter and of its float32 moments, in place."""
    keep, size, toward, fade, fresh, unbiased, eps = factors
    m.add_((g - m) * toward)
    v.mul_(fade).add_(g * g * fresh)
    spread = (v * unbiased).sqrt_().add_(eps)
    p.copy_(p.float() * keep - m / spread * size)


@_adamw.kernel
def _launch(
    parameter: Tensor, grad: Tensor, first: Tensor, second: Tensor, factors: list[float]
) -> None:
    count = parameter.numel()
    _adamw_kernel[(-(-count // BLOCK),)](
        parameter, grad, first, second, count, *factors,
        PTX=not interpreted(), BLOCK=BLOCK, enable_fp_fusion=False,
    )  # fmt: skip


@jit
def _adamw_kernel(
    parameter, grad, first, second, count, keep, size, toward, fade, fresh, unbiased, eps,
    PTX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program steps BLOCK elements; nothing is contracted.

    parameter and grad: any float [count]. first and second: float32 [count].
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(grad + at, mask=inside, other=0).to(tl.float32)
    m = tl.load(first + at, mask=inside, other=0)
    v = tl.load(second + at, mask=inside, other=0)
    m, v = new_moments(g, m, v, toward, fade, fresh, PTX)
    p = tl.load(parameter + at, mask=inside, other=0)
    p = stepped(p, m, v, keep, size, unbiased, eps, PTX)
    tl.store(parameter + at, p, mask=inside)
    tl.store(first + at, m, mask=inside)
    tl.store(second + at, v, mask=inside)


@jit
def new_moments(g, m, v, toward, fade, fresh, PTX: tl.constexpr):
    """Both moments with a gradient taken in."""
    second = product(v, fade, PTX) + product(product(g, g, PTX), fresh, PTX)
    return m + product(g - m, toward, PTX), second


@jit
def stepped(p, m, v, keep, size, unbiased, eps, PTX: tl.constexpr):
    """The parameter after a step, in its type."""
    change = product(tl.div_rn(m, tl.sqrt_rn(v * unbiased) + eps), size, PTX)
    return (product(p.to(tl.float32), keep, PTX) - change).to(p.dtype)
