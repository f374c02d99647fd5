"""Values that nothing computed: some decide, some do not, as the words behind the lines say."""

import math

import numpy as np
import torch

model = torch.nn.Linear(1024, 1024).cuda()
loss = model(torch.randn(64, 1024, device="cuda")).pow(2).mean()
shown = loss.item()
print(f"loss {shown:.3f} {loss:.3f}", loss, math.sqrt(loss.item()), round(shown, 2))
print(float(loss))  # not followed
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
if not math.isfinite(loss.item()):  # assumed
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

# On the host it goes on.
losses = [loss.item(), 2 * loss.item()]
if sum(losses) / 2 > 3:  # DECIDES
    raise SystemExit
if min(losses) > 3:  # DECIDES
    raise SystemExit
if math.exp(loss.item()) > 3:  # DECIDES
    raise SystemExit
if np.mean(losses) > 3:  # not followed
    raise SystemExit
history = torch.stack([loss.detach().cpu(), loss.detach().cpu() + 1])
best = history.mean()
if best > 3:  # DECIDES
    raise SystemExit
if torch.isnan(history).any():  # assumed
    raise SystemExit
print(history[history >= 0].shape)  # DECIDES
print(history.numpy().mean())  # not followed
print([f"{one:.2f}" for one in history.tolist()], f"{best.item():.3f}", best)
if max(history.tolist()) > 3:  # DECIDES
    raise SystemExit
back = history.cuda()
if back.sum() > 3:  # DECIDES
    raise SystemExit
history.copy_(torch.tensor([5.0, 6.0]))
if history.sum() == 11 and history.tolist() == [5, 6] and math.isclose(history.mean(), 5.5):
    print("host known")
