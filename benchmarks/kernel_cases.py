"""Kernels of the bundled model, launched at 7B shapes on tensors that have no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tritter_model.ops import (
    adamw,
    adamw_8bit,
    argmax,
    cross_entropy,
    embedding,
    expand,
    gated_relu2,
    grad_weight,
    layer_norm,
    random_ternary,
    rms_norm,
    rows,
    ternary,
    ternary_training,
)
from tritter_model.ops.ternary_format import packed_width
from tritter_model.ops.tuning import tuned

HIDDEN, INTERMEDIATE, VOCABULARY, PREFILL = 4096, 11008, 65536, 2048

Case = tuple[str, Callable[[], None]]


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def quantised(tokens: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and totals."""
    floats, totals = empty(tokens, dtype=torch.float32), empty(tokens, dtype=torch.int32)
    return empty(tokens, width, dtype=torch.int8), floats, totals


def linear(form: str, tokens: int, inputs: int, outputs: int) -> Case:
    """A ternary layer."""
    packed = empty(outputs, packed_width(inputs, form), dtype=torch.uint8)
    scale, out = empty(outputs, dtype=torch.float32), empty(tokens, outputs)
    args = (*quantised(tokens, inputs), packed, scale, out)
    name = f"{form}, {tokens} x {inputs} to {outputs}"
    return name, lambda: launch(ternary._ternary_linear, *args)


def variant(case: Case, **changes: Any) -> Case:
    """A case launched with other choices than the defaults."""
    name, launch_it = case

    def launch_tuned() -> None:
        with tuned(**changes):
            launch_it()

    chosen = ", ".join(f"{key} {value}" for key, value in changes.items())
    return f"{name}, {chosen}", launch_tuned


def launch(operator: Any, *args: Any) -> None:
    """Launch an operator's kernels."""
    operator.launch(*args)


def cases() -> Iterator[Case]:
    """Every operator at 7B shapes."""
    for tokens in (1, 16, 32, 128, PREFILL):
        yield linear("ternary-2bit", tokens, HIDDEN, HIDDEN)
    yield linear("ternary-2bit", 16, HIDDEN, 2 * INTERMEDIATE)
    for tokens in (1, 16, 32, PREFILL):
        for inputs in (HIDDEN, INTERMEDIATE):  # of which only the first packs into whole words
            yield linear("ternary-1.6bit", tokens, inputs, HIDDEN)
    for form in ("ternary-2bit", "ternary-1.6bit"):
        yield variant(linear(form, PREFILL, HIDDEN, HIDDEN), many_rows_tile=256)
    yield from row_cases()
    yield from training_cases()
    yield from optimizer_cases()
    yield from table_cases()
    yield from other_cases()


def row_cases() -> Iterator[Case]:
    """Operators on rows."""
    hidden, gate_up = empty(PREFILL, HIDDEN), empty(PREFILL, 2 * INTERMEDIATE)
    out, floats = empty(PREFILL, INTERMEDIATE), empty(PREFILL, dtype=torch.float32)
    gain = empty(HIDDEN, dtype=torch.float32)
    rms, gated = rms_norm, gated_relu2
    yield "quantise", lambda: launch(rows.quantise_into, out, *quantised(PREFILL, INTERMEDIATE))
    yield (
        "norm, quantised",
        lambda: launch(
            rms._rms_norm_rows, hidden, empty(HIDDEN), 1e-5, *quantised(PREFILL, HIDDEN)
        ),
    )
    yield (
        "addition and norm, quantised",
        lambda: launch(
            rms._add_rms_norm_rows, hidden, hidden, empty(HIDDEN), 1e-5, *quantised(PREFILL, HIDDEN)
        ),
    )
    yield (
        "gate, quantised",
        lambda: launch(gated._gated_relu2_rows, gate_up, *quantised(PREFILL, INTERMEDIATE)),
    )
    yield "norm", lambda: launch(rms._rms_norm, hidden, gain, 1e-5, hidden, floats)
    yield (
        "norm, backward",
        lambda: launch(rms._rms_norm_backward, hidden, hidden, gain, floats, hidden, gain),
    )
    yield "gate", lambda: launch(gated._gated_relu2, gate_up, out)
    yield "gate, backward", lambda: launch(gated._gated_relu2_backward, out, gate_up, gate_up)


def training_cases() -> Iterator[Case]:
    """Operators of training."""
    f32, int64 = torch.float32, torch.int64
    master, packed = empty(HIDDEN, HIDDEN, dtype=f32), empty(HIDDEN, HIDDEN // 4, dtype=torch.uint8)
    scale, hidden = empty(HIDDEN, dtype=f32), empty(PREFILL, HIDDEN)
    codes, floats, _ = quantised(PREFILL, HIDDEN)
    logits, table = empty(PREFILL, VOCABULARY), empty(VOCABULARY, HIDDEN, dtype=f32)
    targets, scalar = empty(PREFILL, dtype=int64), empty(dtype=f32)
    training, loss = ternary_training, cross_entropy
    yield "ternarise", lambda: launch(training._ternarise, master, packed, scale)
    yield (
        "ternary, gradient of inputs",
        lambda: launch(training._ternary_grad_input, hidden, packed, scale, hidden),
    )
    yield (
        "ternary, gradient of weights",
        lambda: launch(grad_weight._grad_weight, hidden, codes, floats, False, master),
    )
    yield (
        "loss, gradient of the table",
        lambda: launch(grad_weight._grad_weight, logits, hidden, None, True, table),
    )
    yield "loss", lambda: launch(loss._cross_entropy, logits, targets, floats, scalar)
    yield "loss, mean", lambda: launch(loss._mean, targets, scalar, scalar)
    yield (
        "loss, backward",
        lambda: launch(loss._cross_entropy_backward, scalar, scalar, targets, floats, logits),
    )


def optimizer_cases() -> Iterator[Case]:
    """Steps of a float32 master weight."""
    master, factors = empty(HIDDEN, HIDDEN, dtype=torch.float32), [0.5] * 7
    yield "AdamW", lambda: launch(adamw._adamw, master, master, master, master, factors)
    codes, roots = (empty(master.numel(), dtype=dtype) for dtype in (torch.int8, torch.uint8))
    scales = empty(master.numel() // adamw_8bit.BLOCK, dtype=torch.float32)
    moments = (codes, roots, scales, scales)
    yield (
        "AdamW, 8 bits",
        lambda: launch(adamw_8bit._adamw_8bit, master, master, *moments, factors),
    )


def table_cases() -> Iterator[Case]:
    """Embedding tables, and weights that are expanded for a product."""
    table, scale = empty(VOCABULARY, HIDDEN), empty(VOCABULARY, dtype=torch.float32)
    codes, ids = empty(VOCABULARY, HIDDEN, dtype=torch.int8), empty(PREFILL, dtype=torch.int64)
    hidden, grad_table = empty(PREFILL, HIDDEN), empty(VOCABULARY, HIDDEN, dtype=torch.float32)
    yield "embed", lambda: launch(embedding._embed, ids, table, None, hidden)
    yield "embed, int8", lambda: launch(embedding._embed, ids, codes, scale, hidden)
    yield "embed, backward", lambda: launch(embedding._embed_backward, hidden, ids, grad_table)
    packed = empty(VOCABULARY, HIDDEN // 2, dtype=torch.uint8)
    groups = empty(VOCABULARY, expand.int4_groups(HIDDEN), dtype=torch.float16)
    yield "expand int8", lambda: launch(expand._expand, codes, scale, table)
    yield "expand int4", lambda: launch(expand._expand, packed, groups, table)


def other_cases() -> Iterator[Case]:
    """The vision tower's norm, the choice of a token, random weights."""
    patches, affine = empty(196, 768), empty(768)
    norm = layer_norm._layer_norm
    yield "layer norm", lambda: launch(norm, patches, affine, affine, 1e-6, patches)
    chosen = empty(1, 1, dtype=torch.int64)
    yield "argmax", lambda: launch(argmax._argmax, empty(1, VOCABULARY), chosen)
    packed = empty(HIDDEN, HIDDEN // 4, dtype=torch.uint8)
    yield "random weights", lambda: launch(random_ternary._without_threes, packed)
