"""The kernels at 7B shapes on a CUDA device, beside what one would use otherwise.

Products are timed beside bfloat16 by cuBLAS, and beside gemlite where that is installed; each
operator's bytes are held against what a copy moves on the same card in the same run. Weights are
rotated beyond the L2 cache; times are medians, from CUDA events over graph replays. Run with
`python -m benchmarks.kernels --output kernels.json`, which writes every figure and prints tables.
Without a CUDA device it says so and exits with 3.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.figures import environment, share, timed_on_cuda
from benchmarks.timing import (
    Launch,
    Timing,
    copy_bytes_per_second,
    rotation,
    time_calls,
    time_graph,
)
from tritter_model.ops.cross_entropy import chunked_cross_entropy
from tritter_model.ops.gated_relu2 import gated_relu2_rows
from tritter_model.ops.random_ternary import fill_packed
from tritter_model.ops.rms_norm import rms_norm_rows
from tritter_model.ops.rows import QuantisedRows, quantise_rows
from tritter_model.ops.ternary import ternary_linear_into
from tritter_model.ops.ternary_format import packed_width
from tritter_model.ops.ternary_training import trained_ternary_linear

HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 11008, 65536
SHAPES = {
    "QKV, 8 KV heads": (HIDDEN + 2048, HIDDEN),
    "QKV, 32 KV heads": (3 * HIDDEN, HIDDEN),
    "output": (HIDDEN, HIDDEN),
    "gate and up": (2 * INTERMEDIATE, HIDDEN),
    "down": (HIDDEN, INTERMEDIATE),
}
"""Outputs and inputs of the 7B model's layers."""
TOKENS = (1, 2, 16, 128, 2048)
FORMATS = ("ternary-2bit", "ternary-1.6bit")
WANTED = {
    **{(name, 1): 3.0 for name in ("QKV, 8 KV heads", "QKV, 32 KV heads", "output")},
    **{(name, 1): 5.0 for name in ("gate and up", "down")},
    **{(name, 2048): 1.0 for name in SHAPES},
}
"""How many times faster than bfloat16 a 2-bit layer is to be, by layer and tokens."""

Row = dict[str, Any]


def product(name: str, tokens: int, copy_rate: float) -> Row:
    """One layer in every format, for so many tokens."""
    outputs, inputs = SHAPES[name]
    x = torch.randn(tokens, inputs, device="cuda").bfloat16()
    out = x.new_empty((tokens, outputs))
    timings = {"bfloat16": time_graph(bfloat16_products(x, out))}
    rows = quantise_rows(x)
    for form in FORMATS:
        timings[form] = time_graph(ternary_products(rows, out, form))
    if find_spec("gemlite"):
        timings["gemlite"] = min(gemlite_products(x, out), key=lambda timing: timing.median_us)
    nbytes = outputs * packed_width(inputs, "ternary-2bit") + x.numel() + out.nbytes
    return {
        "layer": name,
        "tokens": tokens,
        "timings": {form: asdict(timing) for form, timing in timings.items()},
        "times_bfloat16": {
            form: round(timings["bfloat16"].median_us / timing.median_us, 3)
            for form, timing in timings.items()
        },
        "share_of_copy_rate": share(nbytes, timings["ternary-2bit"], copy_rate),
    }


def bfloat16_products(x: Tensor, out: Tensor) -> list[Launch]:
    """A float layer by cuBLAS, with weights beyond the cache."""
    shape = (out.shape[1], x.shape[1])
    weights = [
        x.new_empty(shape).normal_(0, 0.02) for _ in range(rotation(2 * shape[0] * shape[1]))
    ]
    return [partial(torch.mm, x, weight.t(), out=out) for weight in weights]


def ternary_products(rows: QuantisedRows, out: Tensor, form: str) -> list[Launch]:
    """The same by a ternary layer, on rows that the norm before it has quantised."""
    outputs, width = out.shape[1], packed_width(rows.codes.shape[1], form)
    scale = torch.rand(outputs, device="cuda")
    return [
        partial(ternary_linear_into, rows, packed, scale, out)
        for packed in (
            random_packed(outputs, width, form) for _ in range(rotation(outputs * width))
        )
    ]


def random_packed(outputs: int, width: int, form: str) -> Tensor:
    """Packed weights."""
    packed = torch.empty((outputs, width), dtype=torch.uint8, device="cuda")
    fill_packed(packed, torch.Generator("cuda").manual_seed(0), form == "ternary-2bit")
    return packed


def gemlite_products(x: Tensor, out: Tensor) -> list[Timing]:
    """Two ternary layers of gemlite: bfloat16 activations, and int8 ones that it quantises."""
    helper = import_module("gemlite.helper")
    outputs, inputs = out.shape[1], x.shape[1]
    found = []
    for kind in (helper.A16W158_INT, helper.A8W158_INT_dynamic):
        processor = kind(device="cuda:0", dtype=torch.bfloat16)
        weight = torch.randint(-1, 2, (outputs, inputs), device="cuda").bfloat16()
        one = torch.ones((), device="cuda")
        layers = [
            processor.from_weights(weight, one) for _ in range(rotation(outputs * inputs // 4))
        ]
        found.append(time_graph([partial(layer, x) for layer in layers]))
    return found


def row_operators(tokens: int, copy_rate: float) -> list[Row]:
    """Operators on rows, and what each must move: its input once, and its codes.

    Rows of one token stay in the cache, as they do in a model.
    """
    x = torch.randn(tokens, HIDDEN, device="cuda").bfloat16()
    gate_up = torch.randn(tokens, 2 * INTERMEDIATE, device="cuda").bfloat16()
    gain = torch.ones(HIDDEN, device="cuda").bfloat16()
    operators: dict[str, tuple[Callable[..., object], tuple[Tensor, ...], int]] = {
        "norm and quantisation": (partial(rms_norm_rows, eps=1e-5), (x, gain), HIDDEN),
        "gate and quantisation": (gated_relu2_rows, (gate_up,), INTERMEDIATE),
        "quantisation": (quantise_rows, (x,), HIDDEN),
    }
    found = []
    for name, (operator, inputs, width) in operators.items():
        nbytes = sum(tensor.nbytes for tensor in inputs) + tokens * width
        copies = [[t.clone() for t in inputs] for _ in range(min(rotation(nbytes), 64))]
        timing = time_graph([partial(operator, *copy) for copy in copies])
        found.append(
            {
                "operator": name,
                "tokens": tokens,
                "timing": asdict(timing),
                "share_of_copy_rate": share(nbytes, timing, copy_rate),
            }
        )
    return found


def training() -> list[Row]:
    """A layer and the loss, forward and backward, beside PyTorch's in bfloat16."""
    tokens = 4096
    x = torch.randn(tokens, HIDDEN, device="cuda").bfloat16().requires_grad_()
    weight = (torch.randn(HIDDEN, HIDDEN, device="cuda") * 0.02).requires_grad_()
    table = (torch.randn(VOCABULARY, HIDDEN, device="cuda") * 0.02).bfloat16().requires_grad_()
    targets = torch.randint(0, VOCABULARY, (tokens,), device="cuda")
    steps = {
        "ternary layer": lambda: trained_ternary_linear(x, weight).sum(),
        "bfloat16 layer": lambda: F.linear(x, weight.bfloat16()).sum(),
        "chunked loss": lambda: chunked_cross_entropy(x, table, targets, 2048),
        "chunked loss, ternary": lambda: chunked_cross_entropy(x, table, targets, 2048, True),
        "PyTorch's loss": lambda: F.cross_entropy(F.linear(x, table), targets),
    }
    return [measured_step(name, step, [x, weight, table]) for name, step in steps.items()]


def measured_step(name: str, step: Callable[[], Tensor], leaves: list[Tensor]) -> Row:
    """Forward and backward: their time, and the memory that they need at their peak."""

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        step().backward()

    run()
    for leaf in leaves:
        leaf.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    peak = torch.cuda.max_memory_allocated() - before
    return {"step": name, "timing": asdict(time_calls(run)), "peak_bytes": peak}


def measure() -> Row:
    """Every figure."""
    copy_rate = copy_bytes_per_second()
    products = []
    for name in SHAPES:
        for tokens in TOKENS:
            products.append(product(name, tokens, copy_rate))
            print(f"timed: {name}, {tokens} tokens", file=sys.stderr)
    return {
        "schema": "tritter-mem.kernels/1",
        "environment": environment(),
        "copy_bytes_per_second": round(copy_rate),
        "products": products,
        "rows": [row for tokens in (1, 2048) for row in row_operators(tokens, copy_rate)],
        "training": training(),
        "targets": targets(products),
    }


def targets(products: list[Row]) -> list[Row]:
    """The ratios to reach, and those that were."""
    got = {(row["layer"], row["tokens"]): row["times_bfloat16"] for row in products}
    return [
        {
            "what": f"{name}, {tokens} token{'s' * (tokens > 1)}",
            "wanted": wanted,
            "got": got[name, tokens]["ternary-2bit"],
            "gemlite": got[name, tokens].get("gemlite"),
            "reached": got[name, tokens]["ternary-2bit"] >= wanted,
        }
        for (name, tokens), wanted in WANTED.items()
    ]


def tables(found: Row) -> str:
    """The figures for reading."""
    names = ("bfloat16", *FORMATS, *(("gemlite",) if found["environment"]["gemlite"] else ()))
    lines = [f"{'layer, tokens':<24}" + "".join(f"{name:>22}" for name in names) + "   of a copy"]
    for row in found["products"]:
        cells = (
            f"{row['timings'][name]['median_us']:>12.1f} us {row['times_bfloat16'][name]:>5.2f}x"
            for name in names
        )
        title = f"{row['layer']}, {row['tokens']}"
        lines.append(f"{title:<24} {' '.join(cells)} {row['share_of_copy_rate']:>10.0%}")
    lines += ["", f"{'operator, tokens':<36}{'time':>12}   of a copy"]
    for row in found["rows"]:
        title = f"{row['operator']}, {row['tokens']}"
        us = row["timing"]["median_us"]
        lines.append(f"{title:<36}{us:>9.1f} us {row['share_of_copy_rate']:>10.0%}")
    lines += ["", f"{'forward and backward, 4096':<36}{'time':>12}      peak memory"]
    for row in found["training"]:
        us, mib = row["timing"]["median_us"], row["peak_bytes"] / 2**20
        lines.append(f"{row['step']:<36}{us:>9.0f} us {mib:>12,.0f} MiB")
    return "\n".join([*lines, "", *target_lines(found)])


def target_lines(found: Row) -> list[str]:
    """Each ratio to reach, and whether it was."""
    return [
        f"{row['what']:<30} wanted {row['wanted']:.1f}x, got {row['got']:.2f}x"
        f" {'reached' if row['reached'] else 'NOT REACHED'}"
        + (f", gemlite {row['gemlite']:.2f}x" if row["gemlite"] else "")
        for row in found["targets"]
    ]


def main() -> int:
    """Measure, write, print; the exit code."""
    return timed_on_cuda("kernels", measure, tables)


if __name__ == "__main__":
    sys.exit(main())
