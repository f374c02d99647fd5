import os

import torch
import torch.distributed as dist

rank = int(os.environ["RANK"])
local = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(local)
dist.init_process_group("nccl")
t = torch.tensor([rank + 1.0], device="cuda")
dist.all_reduce(t)
assert t.item() == 3, t
g = [torch.zeros(1, device="cuda") for _ in range(2)]
dist.all_gather(g, torch.tensor([float(rank)], device="cuda"))
assert [x.item() for x in g] == [0, 1]
objs = [None, None]
dist.all_gather_object(objs, {"rank": rank, "x": "y" * 100000})
assert [o["rank"] for o in objs] == [0, 1] and len(objs[0]["x"]) == 100000
b = [{"a": 1} if rank == 0 else None]
dist.broadcast_object_list(b, 0)
assert b == [{"a": 1}]
s = torch.full((4,), rank, device="cuda", dtype=torch.int64)
out = torch.empty(2, device="cuda", dtype=torch.int64)
dist.reduce_scatter_tensor(out, s)
assert out.tolist() == [1, 1]
dist.barrier()
if rank == 0:
    dist.send(torch.tensor([42], device="cuda"), 1)
else:
    r = torch.zeros(1, dtype=torch.int64, device="cuda")
    dist.recv(r, 0)
    assert r.item() == 42
sub = dist.new_group([0, 1])
x = torch.tensor([2.0], device="cuda")
dist.all_reduce(x, op=dist.ReduceOp.PRODUCT, group=sub)
assert x.item() == 4
x = torch.tensor([rank], device="cuda")
dist.all_reduce(x, op=dist.ReduceOp.MAX)
assert x.item() == 1
x = torch.tensor([rank + 1.0], device="cuda", dtype=torch.bfloat16)
dist.all_reduce(x, op=dist.ReduceOp.AVG)
assert x.item() == 1.5
a2a = torch.arange(2, device="cuda") + 10 * rank
o = torch.empty_like(a2a)
dist.all_to_all_single(o, a2a)
assert o.tolist() == [rank, 10 + rank], o
from torch.nn.parallel import DistributedDataParallel as DDP

m = DDP(torch.nn.Linear(1024, 1024).cuda(), device_ids=[local])
m(torch.randn(8, 1024, device="cuda")).sum().backward()
from torch.distributed.fsdp import fully_shard

n = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048, bias=False) for _ in range(4)]).cuda()
for l in n:
    fully_shard(l)
fully_shard(n)
n(torch.randn(8, 2048, device="cuda")).sum().backward()
torch.optim.AdamW(n.parameters()).step()
print(f"rank {rank} fine {torch.cuda.max_memory_allocated()}\n", end="", flush=True)
dist.destroy_process_group()
