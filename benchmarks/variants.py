"""Each way in which kernels can be tuned, beside the default, on a CUDA device.

A row has the times of both and their ratio. `make gpu PARTS=variants` runs this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks import attention, linears, step
from benchmarks.card import device
from benchmarks.rows import Row, has
from benchmarks.timing import Timing, ratio, time_calls, time_graph
from tritter_model.ops.attention import Mask
from tritter_model.ops.attention import attention as whole_attention
from tritter_model.ops.attention_backward import Attended, attention_backward
from tritter_model.ops.rows import quantise_rows
from tritter_model.ops.tuning import tuned

Figures = dict[str, Any]
Work = Callable[[], Timing]
TUNING = "tritter_model.ops.tuning"


def rows(_files: Path) -> Iterator[Row]:
    """Each value of each field that is not the default, by what it changes."""
    if not has(TUNING):
        return
    for field, (values, works) in FIELDS.items():
        default = getattr(import_module(TUNING).tuning(), field)
        for name, work in works.items():
            for value in values:
                if value != default:
                    title = f"{field} {value}, not {default}: {name}"
                    yield Row(title, partial(compared, field, value, work))


def compared(field: str, value: object, work: Work) -> Figures:
    """The same work by default, and with one field changed."""
    module = import_module(TUNING)
    default = work()
    with module.tuned(**{field: value}):
        changed = work()
    return {
        "default": {"value": getattr(module.tuning(), field), **asdict(default)},
        "changed": {"value": value, **asdict(changed)},
        "times_faster": ratio(default.median_us, changed),
    }


def layer(name: str, tokens: int, form: str) -> Timing:
    """A ternary layer."""
    outputs, inputs = linears.SHAPES[name]
    x = torch.randn(tokens, inputs, device=device()).bfloat16()
    out = x.new_empty((tokens, outputs))
    return time_graph(linears.ternary_products(quantise_rows(x), out, form))


def decode(kv_heads: int, dtype: str = "int4") -> Timing:
    """One token behind 128K others."""
    run = attention.shape(attention.TOKENS[0], kv_heads, 1, dtype=dtype)
    with tuned(dependent_launch=True):
        return time_graph(attention.our_launches(run))


def backward() -> Timing:
    """The gradients of attention over 4,096 tokens, 32 heads on 8."""
    parts = [attention.HEADS, 8, 8]
    qkv = torch.randn(4096, sum(parts), attention.WIDTH, device=device()).bfloat16()
    q, k, v = qkv.split(parts, 1)
    out, lse = whole_attention(q, k, v, 1, Mask())
    dq, dk, dv = torch.empty_like(qkv).split(parts, 1)
    past = Attended(q, k, v, out, lse)
    return time_calls(partial(attention_backward, out, past, 1, Mask(), (dq, dk, dv)))


def whole_step() -> Timing:
    """A decode step of the model behind 128K tokens, as a CUDA graph."""
    us = step.step(step.CONTEXTS[0], graph=True)["microseconds"]
    return Timing(us, us, us)


def _layers(tokens: int) -> dict[str, Work]:
    pairs = [(name, linears.FORMATS[0]) for name in ("gate and up", "down", "output")]
    pairs.append(("gate and up", linears.FORMATS[1]))
    return {
        f"{name}, {tokens:,} tokens, {form}": partial(layer, name, tokens, form)
        for name, form in pairs
    }


_STEP: dict[str, Work] = {"decode step behind 131,072 tokens": whole_step}
FIELDS: dict[str, tuple[tuple[object, ...], dict[str, Work]]] = {
    "decode_programs": (
        (2, 3, 4),
        {f"decode attention, {n} KV heads": partial(decode, n) for n in (8, 32)} | _STEP,
    ),
    "decode_pairs": (
        (False, True),
        {f"decode attention, {dtype}": partial(decode, 8, dtype) for dtype in ("int4", "int8")},
    ),
    "decode_warps": (
        (2, 4),
        {f"decode attention, {n} KV heads": partial(decode, n) for n in (8, 32)} | _STEP,
    ),
    "angles_once": ((False, True), _STEP),
    "fused_merge": ((False, True), _STEP),
    "fused_add_norm": ((False, True), _STEP),
    "many_rows_tile": ((128, 256), _layers(2048)),
    "many_rows_stages": ((2, 3, 4), _layers(2048)),
    "many_rows_small_stages": ((2, 3, 4), _layers(128)),
    "dependent_launch": ((False, True), _layers(1)),
    "backward_stages": ((2, 3), {"gradients of attention": backward}),
}
"""The values of each field of `Tuning`, and the work that they change."""
