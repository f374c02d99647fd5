"""gemlite's ternary layers at one token, beside bfloat16: three shapes, where it is installed.

It tries many configurations for each shape, so this is a separate part, the last. `make gpu
PARTS=gemlite` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.card import device
from benchmarks.linears import SHAPES, bfloat16_products
from benchmarks.rows import Figures, Row, has
from benchmarks.timing import Timing, ratio, rotation, time_graph

LAYERS = ("gate and up", "down", "output")


def rows(_files: Path) -> Iterator[Row]:
    """Three layers, in both of gemlite's ways with activations."""
    skipped = "" if has("gemlite") else "gemlite is not installed"
    for name in LAYERS:
        yield Row(f"{name}, 1 token", partial(layer, name), skipped=skipped)


def layer(name: str) -> Figures:
    """Bfloat16 activations, and int8 ones that it quantises."""
    outputs, inputs = SHAPES[name]
    x = torch.randn(1, inputs, device=device()).bfloat16()
    bfloat16 = time_graph(bfloat16_products(x, x.new_empty((1, outputs))))
    found = {kind: timed(kind, x, outputs) for kind in ("A16W158_INT", "A8W158_INT_dynamic")}
    times = {kind: ratio(bfloat16.median_us, timing) for kind, timing in found.items()}
    timings = {kind: asdict(timing) for kind, timing in found.items()}
    return {
        "gemlite": version("gemlite"),
        "timings": {"bfloat16": asdict(bfloat16), **timings},
        "times_bfloat16": times,
    }


def timed(kind: str, x: Tensor, outputs: int) -> Timing:
    """Layers of one kind, with weights beyond the cache."""
    processor = getattr(import_module("gemlite.helper"), kind)(device=str(x.device), dtype=x.dtype)
    weight = torch.randint(-1, 2, (outputs, x.shape[1]), device=x.device).to(x.dtype)
    one = torch.ones((), device=x.device)
    count = rotation(outputs * x.shape[1] // 4)
    return time_graph([partial(processor.from_weights(weight, one), x) for _ in range(count)])
