"""`scaled_dot_product_attention`: what it asks of memory for, and whose attention it takes.

python attention.py FILE     requests of each call of tests/models/cudnn_attention.json, as JSON
python attention.py          whose attention is taken where, and that it can be used everywhere
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

KEPT = []  # gradients, which autograd's thread lets go of a moment later than this one


def tensor(*shape, grad=False):
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda", requires_grad=grad)


def events():
    stats = torch.cuda.memory_stats()
    return stats["allocation.all.allocated"] + stats["allocation.all.freed"]


def attend(call):
    batch, grad = call["batch"], call.get("grad", False)
    q = tensor(batch, call["heads"], call["queries"], call["width"], grad=grad)
    k = tensor(batch, call["groups"], call["keys"], call["width"], grad=grad)
    v = tensor(batch, call["groups"], call["keys"], call["value_width"], grad=grad)
    kind = {"bool": torch.bool, "float": torch.bfloat16}.get(call.get("mask"))
    size = (batch, 1, call["queries"], call["keys"])
    mask = None if kind is None else torch.ones(size, dtype=kind, device="cuda")
    out_grad = tensor(batch, call["heads"], call["queries"], call["value_width"])
    marks = [events()]
    out = F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=call.get("causal", False), enable_gqa=True
    )
    marks.append(events())
    if grad:
        KEPT.append(torch.autograd.grad(out, (q, k, v), out_grad))
        marks.append(events())
        assert [one.stride() for one in KEPT[-1]] == [one.stride() for one in (q, k, v)]
    assert out.shape == out_grad.shape
    return marks


def requests_of(calls):
    marks = [attend(call) for call in calls]
    signs = {"alloc": 1, "free_completed": -1}
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    every = [signs[one["action"]] * one["size"] for one in trace if one["action"] in signs]
    return [[every[first:last] for first, last in pairwise(of_call)] for of_call in marks]


def whose(q, k, **more):
    name = F.scaled_dot_product_attention(q, k, k, **more).grad_fn.name()
    return next(word for word in ("Cudnn", "Flash", "Efficient") if word in name)


def everywhere():
    q, k = tensor(2, 8, 256, 64, grad=True), tensor(2, 8, 256, 64, grad=True)
    print("version", torch.backends.cudnn.version())
    print("default", whose(q, k), whose(q, k, is_causal=True))
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with sdpa_kernel(backend):
            print(backend.name, whose(q, k))
    print("float32", whose(q.float(), k.float()))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        print("autocast", whose(q.float(), k.float()))
    compiled = torch.compile(F.scaled_dot_product_attention, backend="aot_eager", fullgraph=True)
    compiled(q, k, k).sum().backward()  # a gradient of one number: every stride is 0
    assert q.grad.shape == q.shape
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        F.scaled_dot_product_attention(q, k, k)
    graph.replay()
    rows = tensor(512, 8, 64, grad=True)
    starts = torch.tensor([0, 256, 512], dtype=torch.int32, device="cuda")
    varlen_attn(rows, rows, rows, starts, starts, 256, 256).sum().backward()
    assert rows.grad.shape == rows.shape
    conv = torch.nn.Conv2d(3, 8, 3).cuda()
    conv(torch.randn(2, 3, 32, 32, device="cuda")).sum().backward()
    print("fine")


if len(sys.argv) > 1:
    measured = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps(requests_of(measured["calls"])))
else:
    everywhere()
