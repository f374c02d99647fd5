"""A small network of repeated layers, and a batch for it, for tests of the ladder."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritter_mem.oom.jobs import training_job
from tritter_mem.oom.ladder import Settings
from tritter_mem.oom.simulated_device import SimulatedDevice
from tritter_mem.units import MiB

WIDTH, TOKENS, BATCH, CLASSES = 64, 96, 8, 32
ROOMY = 1024 * MiB
Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(functional.gelu(self.up(x))))


class Net(nn.Module):
    def __init__(self, layers: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(dropout) for _ in range(layers))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls.add_(1)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x)
        return out


def make(dropout: float = 0.0) -> tuple[Net, Batch]:
    """A network and a batch in which one sequence has fewer targets than the others."""
    torch.manual_seed(0)
    model = Net(dropout=dropout)
    inputs = torch.randn(BATCH, TOKENS, WIDTH)
    targets = torch.randint(CLASSES, (BATCH, TOKENS))
    targets[2, 10:].fill_(-100)
    return model, (inputs, targets)


def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def count(inputs: Tensor, targets: Tensor) -> Tensor:
    return (targets != -100).sum()


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@cache
def reserved_bytes(settings: Settings) -> int:
    """What a training step under some settings reserves where there is no limit.

    All tensors are of the small pool, whose segments of 2 MiB fill well.
    """
    with SimulatedDevice(ROOMY) as device:
        model, batch = make()
        training_job(model, loss, batch, count).run(settings)
        return device.memory().reserved_bytes


@contextmanager
def without_automatic_collection() -> Iterator[None]:
    """Reference cycles stay until somebody collects them."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
