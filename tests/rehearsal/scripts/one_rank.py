"""A step of FSDP, as torchrun would start it; the rehearsal has one rank of it."""

import os

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

dist.init_process_group("nccl")
torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
assert (dist.get_rank(), dist.get_world_size()) == (3, 64)
found = [None] * 64
dist.all_gather_object(found, "here")
assert found == ["here"] * 64
with torch.device("meta"):
    model = torch.nn.Sequential(*[torch.nn.Linear(8192, 8192, bias=False) for _ in range(8)])
for layer in model:
    fully_shard(layer)
fully_shard(model)
model.to_empty(device="cuda")
optimizer = torch.optim.AdamW(model.parameters())
model(torch.randn(16, 8192, device="cuda")).sum().backward()
optimizer.step()
shard = sum(p.to_local().numel() for p in model.parameters()) * 4
assert shard == 8 * 8192 * 8192 * 4 // 64
print("peak", torch.cuda.max_memory_allocated())
