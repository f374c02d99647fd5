"""A case on a real GPU that is large beside what CUDA's libraries take, and a cap on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tests.measure.nets import CLASSES, WIDTH, Net
from tritter_mem.measure.limit import memory_fraction


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
