"""Kernels of the optimizers' steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_model.ops.adamw import adamw_
from tritter_model.ops.adamw_8bit import Moments, adamw_8bit_
from tritter_model.ops.dynamic_codes import decode

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]
RATES = [0.01, 0.9, 0.95, 0.1, 1e-8]
in_every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
in_every_size = pytest.mark.parametrize("size", [1, 255, 257, 16 * 257])


def gradients(size: int) -> list[Tensor]:
    """Of three steps, each number's of its own magnitude, one block's all zero."""
    magnitude = torch.logspace(-9, 3, size)[torch.randperm(size)]
    magnitude[256:512] = 0
    return [torch.randn(size) * magnitude for _ in range(3)]


@in_every_size
@in_every_type
def test_adamw_gives_the_moments_of_its_reference_bit_for_bit(
    device: torch.device, both: Both, size: int, dtype: torch.dtype
) -> None:
    start, grads = torch.randn(size).to(dtype), gradients(size)

    def walk() -> tuple[Tensor, ...]:
        parameter, moments = start.clone(), (torch.zeros(size), torch.zeros(size))
        for number, grad in enumerate(grads, 1):
            adamw_(parameter, grad.to(dtype), moments, RATES, number)
        return parameter, *moments

    ours, theirs = both(walk)
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])
    # The root of MKL, which PyTorch takes on the CPU, may be one unit off in its last place: so may
    # a step, which is at most 0.02, and the parameter's rounding after each of them.
    rounding = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours[0], theirs[0], rtol=rounding, atol=1e-8)


@in_every_size
@in_every_type
def test_a_step_of_adamw_in_8_bits_is_its_reference(
    device: torch.device, both: Both, size: int, dtype: torch.dtype
) -> None:
    """But for codes that lie on a border: a few of them are the next one."""
    state = torch.randn(size).to(dtype), Moments.zero(torch.empty(size))
    for number, grad in enumerate(gradients(size), 1):
        ours, theirs = both(partial(one_step, *state, grad.to(dtype), number))
        rounding = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours[0], theirs[0], rtol=rounding, atol=1e-6)
        for codes, wanted in zip(ours[1][:2], theirs[1][:2], strict=True):
            apart = (codes.int() - wanted.int()).abs()
            assert apart.max() <= 1
            assert apart.sum() <= max(2, size // 100)
        # A GPU's exp2 reads an old moment to 2^-22 of it, of which the error alone may be left
        # where a gradient cancels them. Second moments only grow, or fade by a product.
        apart = (ours[1].first_scale - theirs[1].first_scale).abs()
        assert (apart <= 1e-6 * theirs[1].first_scale + 2**-21 * state[1].first_scale).all()
        torch.testing.assert_close(ours[1][3], theirs[1][3], rtol=1e-6, atol=0)
        state = theirs


def one_step(
    parameter: Tensor, moments: Moments, grad: Tensor, number: int
) -> tuple[Tensor, Moments]:
    parameter, moments = parameter.clone(), Moments(*(tensor.clone() for tensor in moments))
    adamw_8bit_(parameter, grad, moments, RATES, number)
    return parameter, moments


def test_every_code_is_read_as_what_it_stands_for(device: torch.device, kernels: None) -> None:
    """Without a gradient a step shows the first moments: nine tenths of each, over one root."""
    codes = torch.arange(-127, 129).clamp(max=127).to(torch.int8)
    roots = torch.full((256,), 255, dtype=torch.uint8)
    moments = Moments(codes, roots, torch.ones(1), torch.ones(1))
    got, zero = torch.zeros(256), torch.zeros(256)
    adamw_8bit_(got, zero, moments, [1.0, 0.9, 0.95, 0.0, 1e-12], 10_000)
    first = 0.9 * decode(codes.int().abs(), 7) * codes.sign()
    wanted = -first / (0.95**0.5 * decode(roots, 8))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda p, m: adamw_(p.int(), p, m, RATES, 1), r"got the parameter of int32 \[4, 6\]"),
        (lambda p, m: adamw_(p, p[:3], m, RATES, 1), r"got its gradient of float32 \[3, 6\]"),
        (lambda p, m: adamw_(p.T, p.T, m, RATES, 1), "got the parameter with strides"),
        (lambda p, m: adamw_(p, p, m[::-1], RATES, 1), "got the first moment with strides"),
        (lambda p, m: adamw_8bit_(p, p, Moments.zero(p[1:]), RATES, 1), r"moment of int8 \[18\]"),
    ],
)
def test_what_a_step_does_not_take_is_refused(
    device: torch.device, kernels: None, compute: Callable[..., Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compute(torch.ones(4, 6), (torch.zeros(4, 6), torch.zeros(6, 4).T))
