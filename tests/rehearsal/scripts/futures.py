"""Collectives that only a future is waited for, as DDP's buckets, and what is held behind each."""

import torch
import torch.distributed as dist

dist.init_process_group("nccl")
weight = torch.ones(4, device="cuda", requires_grad=True)
found = []
for _ in range(4):
    bucket = torch.ones(1 << 20, device="cuda")
    dist.all_reduce(bucket, async_op=True).get_future().wait()
    del bucket
    (weight * 2).sum().backward()
    dist.all_reduce(torch.ones(4, device="cuda"))
    found.append(torch.cuda.memory_allocated() >> 20)
print(f"held {found}\n", end="")  # in one piece
dist.destroy_process_group()
