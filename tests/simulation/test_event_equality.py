"""A real run on the CPU and the same run on `meta` leave the same events, one by one.

Every field is compared: kind, storage, bytes, operator, module, phase, category. The model's
initialisation and its random prompt are part of the comparison.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.planner.cases import KV_TYPES, POLICIES, card, tiny
from tritter_mem.config.profile import Profile
from tritter_mem.models.bundled import run_settings
from tritter_mem.simulation.events import Event
from tritter_mem.simulation.recorder import Recorder
from tritter_model.run import run


def events(profile: Profile, device: str) -> list[Event]:
    """What the bundled model does to memory when it runs the profile on a device."""
    torch.manual_seed(0)
    with Recorder(device) as recorder:
        run(run_settings(profile, card()), device, recorder.phase)
    return list(recorder.log)


def short(**overrides: Any) -> Profile:
    """The tiny profile with 160 tokens, in chunks of which the last is short."""
    work = {"workload__context": 160, "workload__prefill_chunk": 60, "workload__new_tokens": 3}
    return tiny(**work, **overrides)


def assert_same_events(profile: Profile) -> None:
    real, on_meta = events(profile, "cpu"), events(profile, "meta")
    for number, (one, other) in enumerate(zip(real, on_meta, strict=False)):
        assert one == other, f"event {number}"
    assert len(real) == len(on_meta)
    phases = {event.phase for event in real}
    training = profile.workload.mode == "training"
    assert phases >= ({"forward", "backward"} if training else {"load", "prefill", "decode"})


@pytest.mark.parametrize("weights", ["ternary-2bit", "ternary-1.6bit"])
@pytest.mark.parametrize("dtype", KV_TYPES)
def test_chunked_prefill_and_decode_with_each_cache(dtype: str, weights: str) -> None:
    assert_same_events(short(kv_cache__dtype=dtype, weights__format=weights))


@pytest.mark.parametrize("weights", ["bfloat16", "float32", "int8", "int4"])
def test_inference_with_other_weights(weights: str) -> None:
    assert_same_events(short(weights__format=weights, weights__embedding_dtype="int8"))


def test_inference_through_windows_in_batches_with_a_tied_table() -> None:
    assert_same_events(
        short(
            model__sliding_window=64, model__global_attention_every=2,
            model__tie_word_embeddings=True, workload__batch=2,
        )
    )  # fmt: skip


def test_inference_with_an_image() -> None:
    assert_same_events(tiny(model__vision="siglip-base", workload__context=230))


@pytest.mark.parametrize("policy", POLICIES)
def test_training_with_each_checkpointing_policy(policy: str) -> None:
    checkpointing = {"policy": policy, "n": 2}
    assert_same_events(short(workload__mode="training", training__checkpointing=checkpointing))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw-8bit"])
def test_training_with_other_optimizers_and_weights(optimizer: str) -> None:
    assert_same_events(
        short(
            workload__mode="training", training__optimizer=optimizer, weights__format="bfloat16",
            model__tie_word_embeddings=True,
        )
    )  # fmt: skip
