"""Random weights from a seed: the same for the same seed, module name and device.

Nothing is made in full precision and packed afterwards: packed weights are random bytes, put right
in place, so that a 7B model is made in its own size.
"""

from __future__ import annotations

from zlib import crc32

import torch
from torch import Tensor, nn

from tritter_model.ops.registry import operator

BLOCK = 1 << 20


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


@operator("fill_packed(Tensor(a!) packed, Generator generator, bool two_bit) -> ()")
def fill_packed(packed: Tensor, generator: torch.Generator, two_bit: bool) -> None:
    """Random ternary weights, in place; a half of 2-bit ones is zero, a third of 1.6-bit ones.

    Every byte is five valid ternary digits in the 1.6-bit format. In the 2-bit format a code may
    come out as 3, which is no weight; it becomes 1 (zero).
    """
    flat = packed.view(-1)
    for start in range(0, flat.numel(), BLOCK):
        part = flat[start : start + BLOCK]
        part.random_(0, 256, generator=generator)
        if two_bit:
            threes = (part >> 1).bitwise_and_(part).bitwise_and_(0x55)
            part.sub_(threes, alpha=2)
