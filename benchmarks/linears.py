"""Ternary layers, operators on rows and steps of training at 7B shapes, on a CUDA device.

Products are timed beside bfloat16 by cuBLAS; each operator's bytes are compared with what a copy
moves on the same card in the same run. Weights are rotated beyond the L2 cache; times are medians,
from CUDA events over graph replays. `make gpu PARTS=linears` runs this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.card import device
from benchmarks.rows import Row
from benchmarks.timing import Launch, ratio, rotation, share, target, time_calls, time_graph
from tritter_model.ops.cross_entropy import chunked_cross_entropy
from tritter_model.ops.gated_relu2 import gated_relu2_rows
from tritter_model.ops.random_ternary import fill_packed
from tritter_model.ops.rms_norm import rms_norm_rows
from tritter_model.ops.rows import QuantisedRows, quantise_rows
from tritter_model.ops.ternary import ternary_linear_into
from tritter_model.ops.ternary_format import packed_width
from tritter_model.ops.ternary_training import trained_ternary_linear
from tritter_model.ops.tuning import tuned

HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 11008, 65536
SHAPES = {
    "QKV, 8 KV heads": (HIDDEN + 2048, HIDDEN),
    "QKV, 32 KV heads": (3 * HIDDEN, HIDDEN),
    "output": (HIDDEN, HIDDEN),
    "gate and up": (2 * INTERMEDIATE, HIDDEN),
    "down": (HIDDEN, INTERMEDIATE),
}
"""Outputs and inputs of the 7B model's layers."""
TOKENS = (1, 2048, 16, 128)
"""Those with a target come first."""
FORMATS = ("ternary-2bit", "ternary-1.6bit")
TRAINING_TOKENS = 4096
WANTED = {
    **{(name, 1): 3.0 for name in ("QKV, 8 KV heads", "QKV, 32 KV heads", "output")},
    **{(name, 1): 5.0 for name in ("gate and up", "down")},
    **{(name, 2048): 1.0 for name in SHAPES},
}
"""How many times faster than bfloat16 a 2-bit layer is to be, by layer and tokens."""

Figures = dict[str, Any]


def rows(_files: Path) -> Iterator[Row]:
    """Layers that have a target, the other layers, operators on rows, training."""
    for tokens in TOKENS:
        for name in SHAPES:
            yield Row(f"{name}, {_count(tokens)}", partial(product, name, tokens))
    for tokens in (1, 2048):
        for name in ROW_OPERATORS:
            yield Row(f"{name}, {_count(tokens)}", partial(row_operator, name, tokens))
    for name in STEPS:
        yield Row(f"{name}, forward and backward", partial(measured_step, name))


def _count(tokens: int) -> str:
    return f"{tokens:,} token{'s' * (tokens > 1)}"


def product(name: str, tokens: int) -> Figures:
    """One layer in every format, for so many tokens."""
    outputs, inputs = SHAPES[name]
    x = torch.randn(tokens, inputs, device=device()).bfloat16()
    out = x.new_empty((tokens, outputs))
    timings = {"bfloat16": time_graph(bfloat16_products(x, out))}
    quantised = quantise_rows(x)
    for form in FORMATS:
        launches = ternary_products(quantised, out, form)
        if tokens == 1:  # as a decode step launches it, and as everything else does
            timings[f"{form}, by itself"] = time_graph(launches)
        with tuned(dependent_launch=tokens == 1):
            timings[form] = time_graph(launches)
    nbytes = outputs * packed_width(inputs, "ternary-2bit") + x.numel() + out.nbytes
    bfloat16_us = timings["bfloat16"].median_us
    figures: Figures = {
        "timings": {form: asdict(timing) for form, timing in timings.items()},
        "times_bfloat16": {form: ratio(bfloat16_us, us) for form, us in timings.items()},
        "share_of_copy_rate": share(nbytes, timings["ternary-2bit"]),
    }
    if wanted := WANTED.get((name, tokens)):
        what = f"{name}, {_count(tokens)}, times bfloat16"
        figures["target"] = target(what, wanted, figures["times_bfloat16"]["ternary-2bit"])
    return figures


def bfloat16_products(x: Tensor, out: Tensor) -> list[Launch]:
    """A float layer by cuBLAS, with weights beyond the cache."""
    shape = (out.shape[1], x.shape[1])
    weights = [
        x.new_empty(shape).normal_(0, 0.02) for _ in range(rotation(2 * shape[0] * shape[1]))
    ]
    return [partial(torch.mm, x, weight.t(), out=out) for weight in weights]


def ternary_products(quantised: QuantisedRows, out: Tensor, form: str) -> list[Launch]:
    """The same by a ternary layer, on rows that the norm before it has quantised."""
    outputs, width = out.shape[1], packed_width(quantised.codes.shape[1], form)
    scale = torch.rand(outputs, device=out.device)
    return [
        partial(ternary_linear_into, quantised, packed, scale, out)
        for packed in (
            random_packed(outputs, width, form) for _ in range(rotation(outputs * width))
        )
    ]


def random_packed(outputs: int, width: int, form: str) -> Tensor:
    """Packed weights."""
    packed = torch.empty((outputs, width), dtype=torch.uint8, device=device())
    generator: Any = None if packed.is_meta else torch.Generator(packed.device).manual_seed(0)
    fill_packed(packed, generator, form == "ternary-2bit")
    return packed


ROW_OPERATORS: dict[str, tuple[Callable[..., object], tuple[int, ...], int]] = {
    "norm and quantisation": (partial(rms_norm_rows, eps=1e-5), (HIDDEN, 0), HIDDEN),
    "gate and quantisation": (gated_relu2_rows, (2 * INTERMEDIATE,), INTERMEDIATE),
    "quantisation": (quantise_rows, (HIDDEN,), HIDDEN),
}
"""Each with the widths of its inputs, of which 0 is a norm's weights, and of its codes."""


def row_operator(name: str, tokens: int) -> Figures:
    """An operator on rows, and what it must move: its input once, and its codes.

    Rows of one token stay in the cache, as they do in a model.
    """
    operator, widths, codes = ROW_OPERATORS[name]
    shapes = [(tokens, width) if width else (HIDDEN,) for width in widths]
    inputs = [torch.randn(shape, device=device()).bfloat16() for shape in shapes]
    nbytes = sum(tensor.nbytes for tensor in inputs) + tokens * codes
    copies = [[t.clone() for t in inputs] for _ in range(min(rotation(nbytes), 64))]
    timing = time_graph([partial(operator, *copy) for copy in copies])
    return {"timing": asdict(timing), "share_of_copy_rate": share(nbytes, timing)}


Leaves = tuple[Tensor, Tensor, Tensor, Tensor]
STEPS: dict[str, Callable[[Leaves], Tensor]] = {
    "ternary layer": lambda t: trained_ternary_linear(t[0], t[1]).sum(),
    "bfloat16 layer": lambda t: F.linear(t[0], t[1].bfloat16()).sum(),
    "chunked loss": lambda t: chunked_cross_entropy(t[0], t[2], t[3], 2048),
    "chunked loss, ternary": lambda t: chunked_cross_entropy(t[0], t[2], t[3], 2048, True),
    "PyTorch's loss": lambda t: F.cross_entropy(F.linear(t[0], t[2]), t[3]),
}
"""A layer and the loss, beside PyTorch's in bfloat16: of inputs, weights, a table, and targets."""


def measured_step(name: str) -> Figures:
    """Forward and backward: their time, and the memory that they need at their peak."""
    where = device()
    x = torch.randn(TRAINING_TOKENS, HIDDEN, device=where).bfloat16().requires_grad_()
    weight = (torch.randn(HIDDEN, HIDDEN, device=where) * 0.02).requires_grad_()
    table = (torch.randn(VOCABULARY, HIDDEN, device=where) * 0.02).bfloat16().requires_grad_()
    targets = torch.randint(0, VOCABULARY, (TRAINING_TOKENS,), device=where)

    def run() -> None:
        for leaf in (x, weight, table):
            leaf.grad = None
        STEPS[name]((x, weight, table, targets)).backward()

    figures: Figures = {"timing": asdict(time_calls(run))}
    if where.type == "cuda":
        figures["peak_bytes"] = _peak_bytes(run, [x, weight, table])
    return figures


def _peak_bytes(run: Callable[[], None], leaves: list[Tensor]) -> int:
    """Of a step, beyond what was there before."""
    for leaf in leaves:
        leaf.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before
