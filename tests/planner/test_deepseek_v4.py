"""DeepSeek-V4 is planned as it is simulated: compressed tokens, streams, hashed experts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.planner.test_transformers_engine import CARD, a_run, both
from tritter_mem.config.loading import load_any
from tritter_mem.config.named_profile import NamedProfile
from tritter_mem.errors import ConfigError
from tritter_mem.models.formats import storage_format
from tritter_mem.models.huggingface import read_config
from tritter_mem.models.shape_tensors import NotPlannedError
from tritter_mem.models.transformers_run import TransformersRun, transformers_run
from tritter_mem.planner.transformers_engine import PlannedModel, plan_transformers, play_run
from tritter_mem.results.run import MemoryUse

SMALL: dict[str, Any] = {
    "model_type": "deepseek_v4", "hidden_size": 256, "num_attention_heads": 4, "head_dim": 64,
    "q_lora_rank": 64, "o_groups": 2, "o_lora_rank": 64, "index_n_heads": 4, "index_head_dim": 32,
    "index_topk": 16, "moe_intermediate_size": 64, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "vocab_size": 500, "num_hidden_layers": 4, "num_hash_layers": 1,
    "sliding_window": 16, "compress_ratios": [0, 128, 4, 4], "qk_rope_head_dim": 16,
    "hc_sinkhorn_iters": 3, "hc_mult": 2,
}  # fmt: skip
FP8 = {
    "expert_dtype": "fp4",
    "quantization_config": {
        "quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0",
        "activation_scheme": "dynamic",
    },
}  # fmt: skip
BITSANDBYTES = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
TRAINING = {"mode": "training", "new_tokens": 1, "context": 256, "batch": 2}
CHECKPOINTED = {"checkpointing": {"policy": "every-layer"}}
STEP_BYTES = 16 << 10
"""Of a training step: positions, and the loss."""


def agree(run: TransformersRun, off: int = 0) -> tuple[MemoryUse, MemoryUse]:
    """What is asked for is the same; whole blocks of the allocator go by the order of all."""
    planned, simulated = uses = both(run)
    asked = [use.allocated_peak_bytes - use.components.rounding_bytes for use in uses]
    assert abs(asked[0] - asked[1]) <= off
    assert (planned.reserved_peak_bytes or 0) >= (simulated.reserved_peak_bytes or 0)
    return planned, simulated


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({}, {"work": {"context": 600, "batch": 2}}),
        ({}, {"work": {"context": 600, "batch": 2}, "chunk": 150}),
        ({}, {"work": {"context": 3, "new_tokens": 2}}),  # no window is whole
        (FP8, {"work": {"context": 300}}),
        (BITSANDBYTES, {"work": {"context": 300}}),
    ],
)
def test_inference_asks_for_the_same_to_the_byte(
    values: dict[str, Any], changes: dict[str, Any]
) -> None:
    planned, simulated = agree(a_run(SMALL | values, **changes))
    for found, wanted in zip(planned.phases, simulated.phases, strict=True):
        for name in ("weights_bytes", "embeddings_bytes"):
            assert getattr(found.components, name) == getattr(wanted.components, name)


@pytest.mark.parametrize("master", ["bfloat16", "float32"])
@pytest.mark.parametrize("checkpointing", [{}, CHECKPOINTED])
def test_training_asks_for_the_same(master: str, checkpointing: dict[str, Any]) -> None:
    """Where layers run again, what the indexer saved is not kept: nothing wants its gradient."""
    training = {"master_dtype": master} | checkpointing
    agree(a_run(SMALL, work=TRAINING, training=training), STEP_BYTES)


def by_token(
    run: TransformersRun, *, every: bool, monkeypatch: pytest.MonkeyPatch
) -> dict[int, int]:
    """The most that is alive in each call, by the tokens before it."""
    starts: dict[int, int] = {}
    call = PlannedModel.call

    def noted(model: PlannedModel, ids: Any, past: int, *rest: Any, **more: Any) -> Any:
        starts[past] = len(model.ops.requests.events)
        return call(model, ids, past, *rest, **more)

    monkeypatch.setattr(PlannedModel, "call", noted)
    requests = play_run(run, CARD, every_token=lambda _: every).requests
    most, live = dict.fromkeys(starts, 0), 0
    ends = dict(zip(starts, [*list(starts.values())[1:], len(requests.events)], strict=True))
    past = iter(starts)
    now = next(past)
    for number, event in enumerate(requests.events):
        if number >= ends[now]:
            now = next(past)
        live += requests.sizes[event] if event >= 0 else -requests.sizes[~event]
        if number >= starts[now]:
            most[now] = max(most[now], live)
    return most


def test_tokens_that_are_left_out_take_no_more_than_those_that_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last tokens that fill a window of 4, and of 128, take the most behind the first one."""
    run = a_run(SMALL, work={"context": 300, "new_tokens": 200})
    some = by_token(run, every=False, monkeypatch=monkeypatch)
    every = by_token(run, every=True, monkeypatch=monkeypatch)
    assert len(every) == 200
    assert len(some) <= 6
    assert {past: every[past] for past in some} == some
    assert max(every.values()) == max(some.values())
    assert {255, 295} <= set(some)


def test_what_waits_for_its_window_is_cached() -> None:
    planned = plan_transformers(a_run(SMALL, work={"context": 260, "new_tokens": 1}), CARD)
    model = read_config(SMALL)
    assert (
        model.cache_bytes(131, 2) - model.cache_bytes(127, 2) < 0
    )  # a window of 128 is compressed
    # Behind a prompt the storages of all its inputs are there.
    cached = planned.phases[-1].components.kv_cache_bytes
    assert cached > 2 * model.cache_bytes(259, 1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"compress_ratios": [0, 7, 4, 4]}, "compress_ratios: got 7, expected one of 0, 4, 128"),
        ({"compress_ratios": [0, 4]}, "compress_ratios: 2 values; at least 4"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types: got 'full_attention', expected"),
        ({"layer_types": ["sliding_attention"]}, "layer_types: 1 values; at least 4"),
        ({"mlp_layer_types": ["dense"] * 4}, "mlp_layer_types: got 'dense', expected one of"),
        ({"compress_rates": {}}, "compress_rates.heavily_compressed_attention"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"hc_mult": 0}, "hc_mult"),
        ({"hc_sinkhorn_iters": 1 << 30}, "hc_sinkhorn_iters: more than 1,000"),
        ({"o_groups": 3}, "o_groups: got 3, expected a divisor"),
        ({"index_head_dim": 8}, "index_head_dim: got 8, expected at least the 16"),
        ({"num_experts_per_tok": 5}, "experts of a token: got 5, expected at most the 4"),
        ({"sliding_window": 1}, "sliding_window: got 1, expected at least 2"),
        ({"qk_rope_head_dim": 128}, "partial_rotary_factor: 128 channels"),
        ({"qk_rope_head_dim": None, "partial_rotary_factor": 0}, "partial_rotary_factor: 0"),
    ],
)
def test_odd_keys_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_config(SMALL | values)


def test_more_chosen_tokens_than_there_are_means_all() -> None:
    plans = [
        plan_transformers(a_run(SMALL | {"index_topk": count}), CARD) for count in (200, 1 << 39)
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ("static", "got static; transformers has no static cache .* try dynamic"),
        ("quantized", "got quantized; .* try dynamic$"),
    ],
)
def test_other_caches_are_refused(tmp_path: Path, cache: str, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    profile = load_any(str(tmp_path), {"kv_cache.implementation": cache})
    assert isinstance(profile, NamedProfile)
    with pytest.raises(ConfigError, match=said):
        transformers_run(profile)


def test_what_transformers_cannot_run_is_not_planned() -> None:
    half = replace(a_run(SMALL), dtype=storage_format("float16"))
    with pytest.raises(NotPlannedError, match=r"beside float16.*try weights.dtype bfloat16"):
        plan_transformers(half, CARD)
    with pytest.raises(NotPlannedError, match="activations of deepseek_v4 experts"):
        plan_transformers(a_run(SMALL | {"scoring_func": "sigmoid"}), CARD)


@pytest.mark.parametrize("heads", [2, 6])
def test_groups_divide_the_width_of_all_heads_and_not_another_number(heads: int) -> None:
    """12 channels of each: 24 or 72 in groups of 4, which no sum of the two is."""
    values = SMALL | {"num_attention_heads": heads, "head_dim": 12, "o_groups": 4}
    read_config(values | {"qk_rope_head_dim": 4, "index_head_dim": 8})


def test_a_window_grows_until_it_is_whole() -> None:
    """Transformers keeps one token fewer than the window before the next one comes."""
    model = read_config(SMALL)
    window = SMALL["sliding_window"]
    grown = [model.kv_bytes_per_token(context=context) for context in (window - 2, window - 1)]
    layers, width, size = SMALL["num_hidden_layers"], SMALL["head_dim"], 2
    windows = layers + 1  # one layer has values that are not its keys
    assert grown[0] - grown[1] == windows * width * size
