"""No weight is ever there in full precision, and no launch allocates anything."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from tritter_mem.trace.events import Event
from tritter_mem.trace.recorder import Recorder
from tritter_model.config import ModelConfig, RunConfig, TrainingConfig
from tritter_model.ops.registry import Operator
from tritter_model.run import run

CASE = RunConfig(
    model=ModelConfig(
        hidden_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=1376,
        vocab_size=67,
    ),
    training=TrainingConfig(loss_chunk=16),
    context=40,
    prefill_chunk=16,
    new_tokens=3,
)
SMALLEST_WEIGHT_BYTES = 512 * 512 * 2
"""The output projection's in bfloat16; all that few tokens need is smaller."""


def recorded(case: RunConfig) -> list[Event]:
    with Recorder("meta") as recorder:
        run(case, "meta", recorder.phase)
    return [event for event in recorder.log if event.kind == "alloc"]


@pytest.mark.parametrize("form", ["ternary-2bit", "ternary-1.6bit"])
def test_inference_never_holds_a_weight_in_full_precision(form: str) -> None:
    events = recorded(replace(CASE, model=replace(CASE.model, weight_format=form)))
    assert max(event.bytes for event in events) < SMALLEST_WEIGHT_BYTES
    assert {event.phase for event in events} >= {"load", "prefill", "decode"}


def test_bfloat16_weights_would_be_seen() -> None:
    """What the test above looks for is there where weights are not packed."""
    events = recorded(replace(CASE, model=replace(CASE.model, weight_format="bfloat16")))
    large = [event for event in events if event.bytes >= SMALLEST_WEIGHT_BYTES]
    assert len(large) == 4 * CASE.model.num_hidden_layers


def test_training_holds_gradients_in_full_precision_and_no_other_weight() -> None:
    events = recorded(replace(CASE, mode="training"))
    large = Counter(
        event.category
        for event in events
        if event.phase in ("forward", "backward") and event.bytes >= SMALLEST_WEIGHT_BYTES
    )
    assert large == {"gradients": 4 * CASE.model.num_hidden_layers}


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_launch_allocates_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: Counter[str] = Counter()
    run_operator = Operator._run

    def counted(operator: Operator, *args: Any) -> None:
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        run_operator(operator, *args)
        if operator.launch is not None:
            made = torch.cuda.memory_stats()["allocation.all.allocated"] - before
            measured[operator.name] = max(measured[operator.name], made)

    monkeypatch.setattr(Operator, "_run", counted)
    run(replace(CASE, mode=mode), "cuda", Recorder("cpu").phase)
    assert measured
    assert not +measured
