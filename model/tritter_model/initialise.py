"""Random weights from a seed: the same for the same seed, module name and device.

Nothing is made in full precision and packed afterwards (`ops/random_ternary.py`), so that a 7B
model is made in its own size.
"""

from __future__ import annotations

from zlib import crc32

import torch
from torch import Tensor, nn


def initialise(model: nn.Module, seed: int) -> None:
    """Call `reset(generator)` of every module that has one; on `meta` there is nothing to do."""
    for name, module in model.named_modules():
        tensor = next(iter(module.state_dict(keep_vars=True).values()), None)
        if not hasattr(module, "reset") or tensor is None or tensor.is_meta:
            continue
        # 32 bits: the CPU's generator takes no more of a seed.
        number = crc32(f"{seed} {name}".encode())
        generator = torch.Generator(tensor.device).manual_seed(number)
        with torch.no_grad():
            module.reset(generator)


def fill_normal(weight: Tensor, generator: torch.Generator, std: float) -> None:
    """Normal numbers, in place."""
    weight.data.normal_(0, std, generator=generator)
