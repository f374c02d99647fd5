"""Optimizers whose state is made of labelled memory and whose steps allocate nothing that counts.

`AdamW` keeps its two moments in float32; `AdamW8bit` in 8 bits, with a float32 scale for each block
of 256; `SGD` keeps nothing. Gradients are dropped at the end of a step, not zeroed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tritter_model.labels import OPTIMIZER_STATE, label
from tritter_model.ops.registry import operator

BLOCK = 256
SLICE = 1 << 20


@dataclass(frozen=True)
class Rates:
    """Learning rate, the decay of the two moments, weight decay, and epsilon."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    eps: float = 1e-8

    def as_list(self) -> list[float]:
        """In the order in which the operators take them."""
        return [self.lr, self.beta1, self.beta2, self.weight_decay, self.eps]


class SGD:
    """Plain gradient descent with decoupled weight decay, and what the others share.

    Args:
        parameters: those that are trained; frozen ones are left out.
        rates: learning rate and the like.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rates: Rates = Rates()) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.rates = rates
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        self.steps += 1
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.update(index, parameter, parameter.grad)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def update(self, index: int, parameter: Tensor, grad: Tensor) -> None:
        """Step one parameter, the `index`-th."""
        del index
        parameter.mul_(1 - self.rates.lr * self.rates.weight_decay)
        parameter.add_(grad, alpha=-self.rates.lr)


class AdamW(SGD):
    """Adam with decoupled weight decay (Loshchilov and Hutter), moments in float32."""

    def __init__(self, parameters: Iterable[nn.Parameter], rates: Rates = Rates()) -> None:
        super().__init__(parameters, rates)
        self.state: dict[int, list[Tensor]] = {}

    def update(self, index: int, parameter: Tensor, grad: Tensor) -> None:
        """Step one parameter; its moments are made at the first step."""
        if index not in self.state:
            with label(OPTIMIZER_STATE):
                self.state[index] = self.moments(parameter)
        self.apply(parameter, grad, self.state[index])

    def moments(self, parameter: Tensor) -> list[Tensor]:
        """First and second moment, zero."""
        return [torch.zeros_like(parameter, dtype=torch.float32) for _ in range(2)]

    def apply(self, parameter: Tensor, grad: Tensor, state: list[Tensor]) -> None:
        """Step one parameter with its state."""
        _adamw(parameter, grad, *state, self.rates.as_list(), self.steps)


class AdamW8bit(AdamW):
    """AdamW whose moments take 8 bits and a scale for each block.

    As in Dettmers et al. (2022), but with linear codes: the same bytes, a simpler step.
    """

    def moments(self, parameter: Tensor) -> list[Tensor]:
        """Codes of both moments, and float32 scales of their blocks."""
        blocks = -(-parameter.numel() // BLOCK)
        shapes = ((torch.int8, parameter.numel()), (torch.uint8, parameter.numel()),
                  (torch.float32, blocks), (torch.float32, blocks))  # fmt: skip
        return [parameter.new_zeros(size, dtype=dtype) for dtype, size in shapes]

    def apply(self, parameter: Tensor, grad: Tensor, state: list[Tensor]) -> None:
        """Step one parameter with its state."""
        _adamw_8bit(parameter, grad, *state, self.rates.as_list(), self.steps)


OPTIMIZERS: dict[str, type[SGD]] = {"sgd": SGD, "adamw": AdamW, "adamw-8bit": AdamW8bit}


def _slices(*tensors: Tensor) -> Iterable[list[Tensor]]:
    """Flat pieces of each, so that what a step computes on the way stays small."""
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), SLICE):
        yield [tensor[start : start + SLICE] for tensor in flat]


@operator(
    "adamw(Tensor(a!) parameter, Tensor grad, Tensor(b!) first, Tensor(c!) second,"
    " float[] rates, int steps) -> ()"
)
def _adamw(
    parameter: Tensor, grad: Tensor, first: Tensor, second: Tensor, rates: list[float], steps: int
) -> None:
    for p, g, m, v in _slices(parameter, grad, first, second):
        _step(p, g.float(), m, v, rates, steps)


def _step(p: Tensor, g: Tensor, m: Tensor, v: Tensor, rates: list[float], steps: int) -> None:
    lr, beta1, beta2, decay, eps = rates
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    spread = (v / (1 - beta2**steps)).sqrt_().add_(eps)
    change = m / spread * (lr / (1 - beta1**steps))
    p.copy_(p.float() * (1 - lr * decay) - change)


@operator(
    "adamw_8bit(Tensor(a!) parameter, Tensor grad, Tensor(b!) first, Tensor(c!) second,"
    " Tensor(d!) first_scale, Tensor(e!) second_scale, float[] rates, int steps) -> ()"
)
def _adamw_8bit(
    parameter: Tensor, grad: Tensor, first: Tensor, second: Tensor,
    first_scale: Tensor, second_scale: Tensor, rates: list[float], steps: int,
) -> None:  # fmt: skip
    blocks = SLICE // BLOCK
    for i, (p, g, m8, v8) in enumerate(_slices(parameter, grad, first, second)):
        scales = slice(i * blocks, (i + 1) * blocks)
        m = _by_block(m8.float(), first_scale[scales])
        v = _by_block(v8.float(), second_scale[scales]).square_()
        _step(p, g.float(), m, v, rates, steps)
        _store(m, m8, first_scale[scales], 127)
        _store(v.sqrt_(), v8, second_scale[scales], 255)
        v8.clamp_(min=1)  # a root of zero would turn what is left of m into a leap


def _by_block(codes: Tensor, scale: Tensor) -> Tensor:
    return codes * scale.repeat_interleave(BLOCK)[: codes.numel()]


def _store(x: Tensor, codes: Tensor, scale: Tensor, levels: int) -> None:
    """Quantise a moment by block. The second is stored as its root: its range halves in digits."""
    padded = torch.nn.functional.pad(x, (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    scale.copy_(padded.abs().amax(1).clamp_(min=1e-20) / levels)
    codes.copy_(_by_block(x, 1 / scale).round_())
