"""bitsandbytes: linear layers of 4 bits, and an AdamW of 8 bits."""

import bitsandbytes as bnb
import torch

model = torch.nn.Sequential(
    bnb.nn.Linear4bit(4096, 4096, bias=False), torch.nn.Linear(4096, 4096, bias=False)
).cuda()
optimizer = bnb.optim.AdamW8bit(model[1].parameters())
model(torch.randn(64, 4096, device="cuda", dtype=torch.bfloat16).float()).sum().backward()
optimizer.step()
