"""A case on a real GPU that is large beside what CUDA's libraries take, and a cap on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.oom.nets import CLASSES, WIDTH, Net
from tritter_mem.devices.cuda import memory_fraction
from tritter_mem.units import MiB


def case() -> tuple[Net, tuple[Tensor, Tensor]]:
    """A network and a batch of 64 sequences: over a GiB of activations."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Net(layers=16)
        inputs = torch.randn(64, 2048, WIDTH)
        targets = torch.randint(CLASSES, (64, 2048))
    targets[2, 10:].fill_(-100)
    return model, (inputs, targets)


def peak_of(run: Callable[[], object]) -> int:
    """What the allocator reserved at most, in bytes; the first run warms up."""
    run_and_forget(run)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run_and_forget(run)
    return torch.cuda.max_memory_reserved()


def run_and_forget(run: Callable[[], object]) -> None:
    run()
    torch.cuda.synchronize()


@contextmanager
def capped(limit_bytes: int) -> Iterator[None]:
    """Let this process reserve no more than that of the device."""
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(memory_fraction(limit_bytes, total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def spill(mean: Tensor, where: str) -> Tensor:
    """Ask for more than any GPU has, in the backward pass or on a stream of its own."""
    if where == "hook":
        mean.register_hook(lambda _: _too_much())
    elif where == "backward":
        return _Spill.apply(mean)  # type: ignore[no-any-return, no-untyped-call]
    elif where == "side stream":
        held, side = _some(), torch.cuda.Stream()
        held.record_stream(side)
        with torch.cuda.stream(side):
            _too_much()
    return mean


class _Spill(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor) -> Tensor:
        ctx.held = _some()
        return mean.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        held = _some()
        _too_much()
        return gradient + held.sum()


def _some() -> Tensor:
    return torch.empty(32 * MiB, dtype=torch.uint8, device="cuda")


def _too_much() -> None:
    torch.empty(2**50, dtype=torch.uint8, device="cuda")
