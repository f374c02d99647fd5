"""Optimizers whose state is made of labelled memory and whose steps allocate nothing.

`AdamW` keeps its two moments in float32; `AdamW8bit` in 8 bits, with a float32 scale for each block
of 256; `SGD` keeps nothing. Gradients are dropped at the end of a step, not zeroed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tritter_model.labels import OPTIMIZER_STATE, label
from tritter_model.ops.adamw import adamw_
from tritter_model.ops.adamw_8bit import Moments, adamw_8bit_


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
        self.state: dict[int, Any] = {}

    def update(self, index: int, parameter: Tensor, grad: Tensor) -> None:
        """Step one parameter; its moments are made at the first step."""
        if index not in self.state:
            with label(OPTIMIZER_STATE):
                self.state[index] = self.moments(parameter)
        self.apply(parameter, grad, self.state[index])

    def moments(self, parameter: Tensor) -> tuple[Tensor, ...]:
        """First and second moment, zero."""
        first, second = (torch.zeros_like(parameter, dtype=torch.float32) for _ in range(2))
        return first, second

    def apply(self, parameter: Tensor, grad: Tensor, moments: Any) -> None:
        """Step one parameter with its state."""
        adamw_(parameter, grad, moments, self.rates.as_list(), self.steps)


class AdamW8bit(AdamW):
    """AdamW whose moments take 8 bits and a scale for each block (Dettmers et al., 2022)."""

    def moments(self, parameter: Tensor) -> Moments:
        """Codes of both moments, and float32 scales of their blocks."""
        return Moments.zero(parameter)

    def apply(self, parameter: Tensor, grad: Tensor, moments: Any) -> None:
        """Step one parameter with its state."""
        adamw_8bit_(parameter, grad, moments, self.rates.as_list(), self.steps)


OPTIMIZERS: dict[str, type[SGD]] = {"sgd": SGD, "adamw": AdamW, "adamw-8bit": AdamW8bit}
