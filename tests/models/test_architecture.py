"""Layers as data: their tables are complete, and a new kind is one class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings

from tests.planner.cases import card, profiles, tiny
from tritter_mem.config.profile import Profile
from tritter_mem.models.architecture import Layer, Rows, Shape, SteppedBlock, Tensors
from tritter_mem.models.bundled import architecture_of
from tritter_mem.models.mlp_blocks import GatedMLP
from tritter_mem.planner.case import Case
from tritter_mem.planner.compose import plan_case


def blocks(profile: Profile) -> set[SteppedBlock]:
    return {block for layer in architecture_of(profile.model).layers for block in layer.blocks}


def names_in(texts: Any) -> set[str]:
    return {name for text in texts for name in text.split()}


@settings(deadline=None, max_examples=50)
@given(profile=profiles())
def test_tables_name_tensors_and_weights_that_there_are(profile: Profile) -> None:
    case = Case.of(profile, card())
    rows = case.rows(7)
    for block in blocks(profile):
        tensors, trained = block.tensors(rows).keys(), block.trained_tensors(rows).keys()
        weights = block.parameters(rows.hidden).keys()
        assert names_in(block.INFERENCE.values()) <= tensors | {"attention_scratch"}
        assert names_in(block.FORWARD.values()) | block.SAVED_SINCE.keys() <= trained
        alive, gradients = zip(*block.BACKWARD.values(), strict=True)
        assert names_in(alive) <= trained
        assert names_in(gradients) <= weights
        assert names_in(gradients[-1:]) == weights, "the last step has all of them"
        for kept in block.KEPT.values():
            assert set(kept) <= block.SAVED_SINCE.keys()
        assert set(block.RESULTS.values()) <= block.SAVED_SINCE.keys()
        assert all(number < len(block.FORWARD) for number in block.SAVED_SINCE.values())


def test_layers_alternate_as_the_model_s_do() -> None:
    profile = tiny(
        model__num_hidden_layers=6, model__sliding_window=64, model__global_attention_every=3
    )
    windows = [layer.blocks[0].window for layer in architecture_of(profile.model).layers]  # type: ignore[attr-defined]
    assert windows == [64, 64, None, 64, 64, None]


@dataclass(frozen=True, slots=True)
class PlainMLP(SteppedBlock):
    """An MLP without a gate: a kind that the tool does not have."""

    inner: int

    STORED: ClassVar = ("norm", "up", "down")
    INFERENCE: ClassVar = {"up": "x rows_in up", "down": "x up y"}
    FORWARD: ClassVar = {"up": "x norm up", "down": "x up y", "second residual": "x y sum"}
    SAVED_SINCE: ClassVar = {"x": 0, "norm": 0, "up": 0}
    RESULTS: ClassVar = {}
    KEPT: ClassVar = {}
    BACKWARD: ClassVar = {"down": ("x norm up grad", "down"), "up": ("x grad", "down up norm")}

    def linears(self, hidden: int) -> dict[str, Shape]:
        return {"up": (self.inner, hidden), "down": (hidden, self.inner)}

    def norms(self, hidden: int) -> dict[str, int]:
        return {"norm": hidden}

    def tensors(self, rows: Rows) -> Tensors:
        stream = rows.activation(rows.hidden)
        return {
            "x": stream,
            "rows_in": stream,
            "up": rows.activation(self.inner),
            "y": stream,
        }

    def trained_tensors(self, rows: Rows) -> Tensors:
        stream = rows.activation(rows.hidden)
        names = ("x", "norm", "y", "sum", "grad")
        return {**dict.fromkeys(names, stream), "up": rows.activation(self.inner)}


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("policy", ["none", "every-layer", "selective-matmul", "segments"])
def test_a_new_kind_of_block_is_planned_without_a_change_elsewhere(mode: str, policy: str) -> None:
    profile = tiny(
        weights__format="bfloat16", workload__mode=mode, training__checkpointing__policy=policy
    )
    case = Case.of(profile, card())
    inner = 2 * profile.model.intermediate_size

    def with_mlp(mlp: SteppedBlock) -> Case:
        layers = tuple(Layer((layer.blocks[0], mlp)) for layer in case.architecture.layers)
        return replace(case, architecture=replace(case.architecture, layers=layers))

    plain, gated = with_mlp(PlainMLP(inner)), with_mlp(GatedMLP(inner))
    less = inner * profile.model.hidden_size * profile.model.num_hidden_layers
    assert gated.architecture.parameters - plain.architecture.parameters == less
    assert plan_case(plain).allocated_peak_bytes < plan_case(gated).allocated_peak_bytes
