import torch
import torch.nn.functional as F
from torch import nn

d = "cuda"
# true small
a = torch.arange(12, device=d).view(3, 4)
assert a.sum().item() == 66
assert torch.unique(torch.tensor([3, 1, 3], device=d)).tolist() == [1, 3]
assert (torch.tensor([0, 2, 0, 5], device=d) != 0).nonzero().flatten().tolist() == [1, 3]
x = torch.tensor([1.0, 2.0, 3.0], device=d, requires_grad=True)
(x**2).sum().backward()
assert x.grad.tolist() == [2, 4, 6]
lens = torch.tensor([5, 3, 2], device=d)
rep = torch.repeat_interleave(torch.arange(3, device=d), lens)
assert rep.tolist() == [0] * 5 + [1] * 3 + [2] * 2, rep
assert torch.bincount(lens).tolist() == [0, 0, 1, 1, 0, 1]
assert torch.equal(lens, lens.clone()) and not torch.equal(lens, lens + 1)
cu = F.pad(lens.cumsum(0), (1, 0))
assert cu.tolist() == [0, 5, 8, 10]
m = torch.tensor([True, False, True], device=d)
assert lens[m].tolist() == [5, 2]
assert lens.masked_select(m).tolist() == [5, 2]
assert torch.topk(torch.tensor([1.0, 9.0, 3.0], device=d), 2).indices.tolist() == [1, 2]
assert torch.sort(torch.tensor([3, 1, 2], device=d)).values.tolist() == [1, 2, 3]
assert torch.isfinite(torch.tensor([1.0, float("inf")], device=d)).tolist() == [True, False]
dr = F.dropout(torch.ones(1000, device=d), 0.5)
n = (dr == 0).sum().item()
assert 350 < n < 650, n
s0 = torch.random.get_rng_state()
torch.rand(10, device=d)
assert torch.equal(s0, torch.random.get_rng_state())
t = torch.rand(5, device=d)
assert not torch.equal(t, torch.rand(5, device=d))
h = torch.tensor([1.5, 2.5], device=d, dtype=torch.half)
assert (h * 2).tolist() == [3, 5]
b = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=d, dtype=torch.bfloat16) @ torch.eye(
    2, device=d, dtype=torch.bfloat16
)
assert b.tolist() == [[1, 2], [3, 4]]
o = torch.zeros(4, device=d)
o[1:3] = torch.tensor([7.0, 8.0], device=d)
assert o.tolist() == [0, 7, 8, 0]
o.index_add_(0, torch.tensor([0, 3], device=d), torch.tensor([1.0, 1.0], device=d))
assert o.tolist() == [1, 7, 8, 1]
w = torch.where(o > 5, o, torch.zeros_like(o))
assert w.tolist() == [0, 7, 8, 0]
assert F.one_hot(torch.tensor([0, 2], device=d), 3).tolist() == [[1, 0, 0], [0, 0, 1]]
lin = nn.Linear(4, 2).to(d)
y = lin(torch.ones(1, 4, device=d))
c = nn.Linear(4, 2)
c.load_state_dict({k: v.cpu() for k, v in lin.state_dict().items()})
assert torch.allclose(y.cpu(), c(torch.ones(1, 4)), atol=1e-5)
opt = torch.optim.AdamW(lin.parameters(), lr=0.1)
before = lin.weight.detach().clone()
lin(torch.ones(1, 4, device=d)).sum().backward()
opt.step()
assert not torch.equal(before, lin.weight)
with torch.device("cuda"):  # new tensors are made there
    assert (2.0 ** torch.arange(3)).tolist() == [1, 2, 4]
    assert torch.unique(torch.tensor([2, 1, 2])).tolist() == [1, 2]
    assert (torch.ones(2, 2) > 0).nonzero().shape == (4, 2)
    scores = torch.empty(300, 300) @ torch.empty(300, 300)  # unknown
    assert torch.topk(scores, 3).indices[1].tolist() == [3, 4, 5]
    assert torch.multinomial(scores, 1).shape == (300, 1)
print("true values fine")
# scaler and clip on a large model
big = nn.Linear(2048, 2048).to(d)
opt = torch.optim.SGD(big.parameters(), lr=0.1)
sc = torch.amp.GradScaler("cuda")
with torch.autocast("cuda", dtype=torch.float16):
    l = big(torch.randn(64, 2048, device=d)).float().pow(2).mean()
sc.scale(l).backward()
sc.unscale_(opt)
nrm = torch.nn.utils.clip_grad_norm_(big.parameters(), 1.0)
sc.step(opt)
sc.update()
assert sc.get_scale() == 65536.0, sc.get_scale()
if torch.isnan(l):
    raise SystemExit("nan")
if not torch.isfinite(l).all():
    raise SystemExit("inf")
print("scaler fine", float(nrm), l.item())
