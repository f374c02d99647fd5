"""A KV cache that grows by concatenation, one token at a time, as many generation loops have it.

Every token asks for blocks a little larger than all those that were freed before it, so what is
free fits nothing: memory fragments.

tritter-mem profile --module docs/examples/growing_cache.py:build --warmup 0
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def build(
    device: torch.device,
    layers: int = 24,
    prompt: int = 3380,
    tokens: int = 64,
    width: int = 1024,
) -> Callable[[], None]:
    """Return a step that generates tokens after a prompt, with a bfloat16 cache [tokens, width]."""

    def new(count: int) -> Tensor:
        return torch.zeros(count, width, dtype=torch.bfloat16, device=device)

    def step() -> None:
        keys, values = ([new(prompt) for _ in range(layers)] for _ in range(2))
        for _ in range(tokens):
            for cache in (keys, values):
                for layer in range(layers):
                    cache[layer] = torch.cat([cache[layer], new(1)])

    return step
