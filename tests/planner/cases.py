"""Profiles for the planner's tests, and what the real model takes for them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.loading import load_profile
from tritter_mem.config.profile import Profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import ConfigError
from tritter_mem.models.bundled import run_settings
from tritter_mem.planner.compose import plan
from tritter_mem.results.run import MemoryUse
from tritter_mem.simulation.peaks import Peaks, find_peaks
from tritter_mem.simulation.recorder import Recorder
from tritter_model.run import run

KV_TYPES = ("bfloat16", "float16", "fp8", "int8", "int4", "int2")
POLICIES = (
    "none", "every-layer", "every-nth", "segments", "selective-attention", "selective-matmul",
)  # fmt: skip
TRAINABLE = ("ternary-2bit", "ternary-1.6bit", "bfloat16", "float16", "float32")


def tiny(**overrides: Any) -> Profile:
    """The bundled tiny profile with keys replaced; a double underscore stands for the dot."""
    return load_profile("tiny", {key.replace("__", "."): v for key, v in overrides.items()})


DETERMINED: dict[str, dict[str, Any]] = {
    "one chunk": {"workload__context": 150, "workload__new_tokens": 34},
    "two chunks": {"workload__context": 208, "workload__prefill_chunk": 100},
    "a rest": {"workload__context": 250, "workload__prefill_chunk": 100, "workload__new_tokens": 3},
    "one token": {"workload__context": 250, "workload__new_tokens": 1, "workload__batch": 3},
    "two tokens": {"workload__context": 250, "workload__new_tokens": 2, "workload__batch": 2},
    "logits in float32": {
        "workload__context": 60, "workload__batch": 3, "model__vocab_size": 30_000,
        "weights__format": "bfloat16", "weights__embedding_dtype": "float32",
    },
    "logits of bfloat16": {
        "workload__context": 60, "workload__batch": 3, "model__vocab_size": 30_000,
        "weights__format": "bfloat16", "weights__embedding_dtype": "bfloat16",
    },
    "logits of int8": {
        "workload__context": 60, "workload__batch": 3, "model__vocab_size": 30_000,
        "weights__format": "int8", "weights__embedding_dtype": "int8",
    },
    "more layers than are played": {
        "workload__context": 150, "model__num_hidden_layers": 7, "workload__new_tokens": 5,
    },
}  # fmt: skip
"""Changes of the tiny profile that give each step of a run its own size."""


def card() -> GpuCard:
    return find_gpu("rtx-5080")


def recorded(profile: Profile, device: str) -> Peaks:
    """What the bundled model allocates when it runs the profile for real on a device."""
    torch.manual_seed(0)
    with Recorder(device) as recorder:
        run(run_settings(profile, card()), device, recorder.phase)
    return find_peaks(recorder.log)


def storages(use: MemoryUse) -> dict[str, int]:
    """A plan's components without what libraries take on a GPU: what storages there are."""
    parts = use.components.items()
    return {**parts, "workspace": parts["workspace"] - use.library_workspace_bytes}


def assert_plan_is_exact(profile: Profile, device: str = "meta") -> None:
    """Every component at the peak, and every phase's peak, equal to the byte."""
    use, real = plan(profile, card()), recorded(profile, device)
    assert storages(use) == real.components.items()
    library = {"load": 0}  # there from the warm-up on
    planned = {
        phase.name: phase.allocated_peak_bytes
        - library.get(phase.name, use.library_workspace_bytes)
        for phase in use.phases
    }
    assert planned == {phase.name: phase.allocated_peak_bytes for phase in real.phases}


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Small profiles of every kind, inference and training."""
    training = draw(st.booleans())
    formats = TRAINABLE if training else (*TRAINABLE, "int8", "int4")
    tables = ("bfloat16", "float16", "float32") if training else ("bfloat16", "float32", "int8")
    values = {
        "name": "drawn",
        "model": draw(_models()),
        "weights": {
            "format": draw(st.sampled_from(formats)),
            "embedding_dtype": draw(st.sampled_from(tables)),
        },
        "kv_cache": {
            "dtype": draw(st.sampled_from(KV_TYPES)),
            "group_size": draw(st.sampled_from((8, 16, 64, 256))),
            "attention_sinks": draw(st.sampled_from((0, 4))),
        },
        "workload": {
            "mode": "training" if training else "inference",
            "context": draw(st.integers(220, 900)),
            "batch": draw(st.integers(1, 3)),
            "prefill_chunk": draw(st.sampled_from((37, 100, 200, 2048))),
            "new_tokens": draw(st.sampled_from((1, 2, 3, 8))),
            "cuda_graph": not training and draw(st.booleans()),
        },
        "training": {
            "optimizer": draw(st.sampled_from(("adamw", "adamw-8bit", "sgd"))),
            "master_dtype": draw(st.sampled_from(("float32", "bfloat16"))),
            "checkpointing": {
                "policy": draw(st.sampled_from(POLICIES)), "n": draw(st.integers(1, 2))},
            "loss_chunk": draw(st.sampled_from((50, 100, 4096))),
        },
    }  # fmt: skip
    try:
        return Profile.model_validate(values)
    except ConfigError:
        from hypothesis import reject

        reject()


@st.composite
def _models(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads = draw(st.sampled_from((1, 2, 4)))
    window = draw(st.sampled_from((None, None, 37, 128, 1000)))
    return {
        "hidden_size": draw(st.sampled_from((64, 96, 130))),
        "num_hidden_layers": draw(st.integers(2, 6)),
        "num_attention_heads": kv_heads * draw(st.integers(1, 3)),
        "num_key_value_heads": kv_heads,
        "head_dim": draw(st.sampled_from((16, 32, 64))),
        "intermediate_size": draw(st.sampled_from((77, 100, 352))),
        "vocab_size": draw(st.sampled_from((100, 512, 5000))),
        "tie_word_embeddings": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "sliding_window": window,
        "global_attention_every": draw(st.sampled_from((None, 2, 3))) if window else None,
        "vision": draw(st.sampled_from((None, None, None, "siglip-base"))),
    }
