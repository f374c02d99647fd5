"""Operations are those of the products that run: by hand, and by PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import tritter_model.run  # noqa: F401  (it defines every operator)
from tests.planner.cases import card, tiny
from tritter_mem.models.bundled import run_settings
from tritter_mem.simulation.flops import OPERATIONS, FlopCounter, visible_pairs
from tritter_mem.simulation.recorder import Recorder
from tritter_model.ops.attention import Mask
from tritter_model.run import run

META = torch.device("meta")
WITHOUT_PRODUCTS = {
    "adamw", "adamw_8bit", "add_rms_norm_rows", "append", "argmax", "cross_entropy",
    "cross_entropy_backward", "cross_entropy_mean", "embed", "embed_backward", "expand",
    "gated_relu2", "gated_relu2_backward", "gated_relu2_rows", "layer_norm", "quantise_rows",
    "rms_norm", "rms_norm_backward", "rms_norm_rows", "rotary_angles", "rotate", "rotate_append",
    "rotate_backward",
    "ternarise", "without_threes",
}  # fmt: skip


def counted(work: Callable[[], object]) -> int:
    with FlopCounter() as counter, Recorder("meta"):
        work()
    return sum(counter.by_phase.values())


def test_every_operator_of_the_model_is_counted_or_has_no_product() -> None:
    names = torch._C._dispatch_get_all_op_names()
    ours = {name.removeprefix("tritter::").partition(".")[0]
            for name in names if name.startswith("tritter::")}  # fmt: skip
    assert ours == OPERATIONS.keys() | WITHOUT_PRODUCTS
    assert not OPERATIONS.keys() & WITHOUT_PRODUCTS


@given(
    queries=st.integers(1, 12), position=st.integers(0, 12), causal=st.booleans(),
    window=st.integers(0, 9), sinks=st.integers(0, 4),
)  # fmt: skip
def test_visible_pairs_are_those_of_the_mask(
    queries: int, position: int, causal: bool, window: int, sinks: int
) -> None:
    window = window if causal else 0  # no model looks ahead through a window
    rows = torch.arange(position, position + queries)
    seen = Mask(causal, window, sinks).visible(rows, torch.arange(position + queries))
    assert visible_pairs(queries, position, causal, window, sinks) == int(seen.sum())


def test_pytorch_s_operators_count_as_pytorch_counts_them() -> None:
    """In inference mode too, where composite operators come whole."""

    def work() -> None:
        layer = torch.nn.Linear(24, 40, device=META)
        with torch.inference_mode():
            layer(torch.empty(7, 24, device=META))
        layer(torch.empty(5, 24, device=META)).sum().backward()

    with FlopCounterMode(display=False) as theirs:
        layer = torch.nn.Linear(24, 40, device=META)
        layer(torch.empty(7, 24, device=META))
        layer(torch.empty(5, 24, device=META)).sum().backward()
    assert counted(work) == theirs.get_total_flops() > 0


def by_phase(**settings: Any) -> dict[str, int]:
    profile = tiny(**settings)
    counter = FlopCounter()
    with counter, Recorder("meta"):
        run(run_settings(profile, card()), "meta", counter.phase)
    return counter.by_phase


# The tiny model: hidden 128, 4 layers, 4 heads of 32 over 2 KV heads, inner 352, vocabulary 512.
LINEAR = 128 * (128 + 2 * 64) + 128 * 128 + 128 * 2 * 352 + 352 * 128
HEAD = 128 * 512


@pytest.mark.parametrize("weights", ["ternary-2bit", "bfloat16", "int8", "int4"])
def test_inference_by_hand(weights: str) -> None:
    """504 tokens of prompt through the layers, its last through the head; then 7 more of each."""
    found = by_phase(weights__format=weights)
    prompt, new = 504, 7
    attention = 4 * 4 * 4 * 32
    assert found["prefill"] == (
        2 * prompt * 4 * LINEAR + attention * prompt * (prompt + 1) // 2 + 2 * HEAD
    )
    pairs = sum(range(prompt + 1, prompt + new + 1))
    assert found["decode"] == 2 * new * 4 * LINEAR + attention * pairs + 2 * new * HEAD


def test_a_window_bounds_the_work_of_decode() -> None:
    found = by_phase(model__sliding_window=64)
    assert found["decode"] == 7 * (2 * 4 * LINEAR + 4 * 4 * 4 * 32 * (64 + 4) + 2 * HEAD)


@pytest.mark.parametrize("weights", ["ternary-2bit", "bfloat16"])
def test_training_by_hand(weights: str) -> None:
    """Two products a weight in the backward pass, five of attention; the loss's logits twice."""
    found = by_phase(
        workload__mode="training", weights__format=weights,
        training__checkpointing={"policy": "none", "n": 1},
    )  # fmt: skip
    tokens, pairs = 512, 512 * 513 // 2
    linear, attention = 2 * tokens * 4 * LINEAR, 4 * 4 * 32 * 2 * pairs
    assert found["forward"] == linear + 2 * attention + 2 * tokens * HEAD
    assert found["backward"] == 2 * linear + 5 * attention + 3 * 2 * tokens * HEAD
