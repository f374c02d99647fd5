"""Collectives that only a future is waited for, as DDP's buckets, and what is held behind each."""

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def reduce_bucket() -> None:
    """The average of 4 MiB, which only its future is waited for."""
    bucket = torch.ones(1 << 20, device="cuda")
    dist.all_reduce(bucket, async_op=True).get_future().wait()


def held() -> int:
    """MiB that live, behind one more collective."""
    dist.all_reduce(torch.ones(4, device="cuda"))
    return torch.cuda.memory_allocated() >> 20


class Slow(torch.autograd.Function):
    """Its backward pass takes long enough for PyTorch's watchdog to look."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """As it is."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """As it is."""
        reduce_bucket()
        time.sleep(0.4)
        within.append(held())
        return gradient


dist.init_process_group("nccl")
weight = torch.ones(4, device="cuda", requires_grad=True)
within: list[int] = []
behind = []
for _ in range(4):
    reduce_bucket()
    (weight * 2).sum().backward()
    behind.append(held())
Slow.apply(weight).sum().backward()
behind.append(held())
print(f"behind {behind}, within {within}\n", end="")  # in one piece
dist.destroy_process_group()
