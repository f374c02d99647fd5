"""A step of a model that is as wide as WIDTH says; with DECIDES, uncomputed values decide."""

import os

import torch

model = torch.nn.Sequential(torch.nn.Linear(1024, int(os.environ.get("WIDTH", "4096")))).cuda()
loss = model(torch.randn(64, 1024, device="cuda")).sum()
loss.backward()
if "DECIDES" in os.environ and loss > 1:
    raise SystemExit
