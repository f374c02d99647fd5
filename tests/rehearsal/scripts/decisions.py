"""Values that nothing computed: some decide, some do not, as the words behind the lines say."""

import math

import torch

model = torch.nn.Linear(1024, 1024).cuda()
loss = model(torch.randn(64, 1024, device="cuda")).pow(2).mean()
shown = loss.item()
print(f"loss {shown:.3f}", float(loss), math.sqrt(loss.item()))  # decides nothing
total = 0.0
total += loss.item()  # decides nothing
if total > 1.0:  # DECIDES
    raise SystemExit
if loss.item() < 1.0:  # DECIDES
    pass
if loss > 1.0:  # DECIDES
    raise SystemExit
if torch.isnan(loss) or not torch.isfinite(loss):  # assumed
    raise SystemExit
large = model.weight @ model.weight
kept = large[large > 0]  # DECIDES
assert kept.numel() == large.numel(), "of unknown values the most are taken"
count = int((large > 0).sum())  # DECIDES
assert torch.isfinite(large).all()  # assumed
token = torch.argmax(large[0])
print(token.tolist())  # DECIDES
unique = torch.unique(large[0])  # DECIDES
assert unique.numel() == 1024
known = torch.arange(10, device="cuda")
if (known > 3).sum() == 6:  # known
    print("known", known[known > 3].tolist(), int(known.sum()))
experts = torch.topk(large[:512, :16], 4).indices
hit = torch.nn.functional.one_hot(experts, 16).sum((0, 1))
assert hit.tolist() == [128] * 16  # assumed
