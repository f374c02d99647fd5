"""Rules between fields: each is found, says what is allowed, and is quiet where all is well."""

from typing import Any

import pytest

from tritter_mem.config.loading import load_profile, merged
from tritter_mem.config.profile import Profile
from tritter_mem.errors import ConfigError

# What breaks one rule of the tiny profile, and the whole line that says so.
BROKEN: list[tuple[dict[str, Any], str]] = [
    (
        {"model": {"head_dim": None, "hidden_size": 130}},
        "model.hidden_size: got 130, expected a multiple of num_attention_heads (4); "
        "or give head_dim",
    ),
    (
        {"model": {"num_key_value_heads": 3}},
        "model.num_key_value_heads: got 3, expected a divisor of num_attention_heads (4), "
        "such as 2",
    ),
    (
        {"model": {"num_key_value_heads": 8}},
        "model.num_key_value_heads: got 8, expected a divisor of num_attention_heads (4), "
        "such as 4",
    ),
    (
        {"model": {"head_dim": 33}, "kv_cache": {"dtype": "bfloat16"}},
        "model.head_dim: got 33, expected a multiple of 2 (rotary embeddings turn pairs of "
        "channels, and int4 packs 2 a byte), such as 34",
    ),
    (
        {"model": {"head_dim": 34}, "kv_cache": {"dtype": "int2", "group_size": 64}},
        "model.head_dim: got 34, expected a multiple of 4 (int2 packs 4 channels a byte), "
        "such as 36",
    ),
    (
        {"kv_cache": {"group_size": 24}},
        "kv_cache.group_size: got 24, expected a divisor of head_dim (32), or 32 and more: "
        "values share a scale along the channels",
    ),
    (
        {"model": {"global_attention_every": 4}},
        "model.global_attention_every: got 4 without sliding_window, expected null; "
        "or set sliding_window, such as 4k",
    ),
    (
        {"workload": {"new_tokens": 512}},
        "workload.new_tokens: got 512, expected fewer than context (512), "
        "which holds the prompt and the new tokens",
    ),
    (
        {"workload": {"cuda_graph": True, "mode": "training"}},
        "workload.cuda_graph: got true; training takes false; or set workload.mode to "
        "inference, where decode replays a graph",
    ),
    (
        {"model": {"vision": "siglip-base"}, "workload": {"context": 204}},
        "workload.context: got 204, expected more than 204, because siglip-base puts 196 tokens "
        "before the text; or set model.vision to null",
    ),
    (
        {"model": {"intermediate_size": 16}, "weights": {"format": "ternary-1.6bit"}},
        "weights.format: got ternary-1.6bit for a layer of 16 inputs, expected 17 or more, "
        "or ternary-2bit",
    ),
    (
        {"kv_cache": {"attention_sinks": 512}},
        "kv_cache.attention_sinks: got 512, expected fewer than context (512)",
    ),
    (
        {"workload": {"mode": "training"}, "weights": {"format": "int4"}},
        "weights.format: got int4; training takes ternary-2bit, ternary-1.6bit, bfloat16, "
        "float16, float32: whole numbers have no gradient; or set workload.mode to inference",
    ),
    (
        {"workload": {"mode": "training"}, "weights": {"embedding_dtype": "int8"}},
        "weights.embedding_dtype: got int8; training takes bfloat16, float16, float32: "
        "whole numbers have no gradient; or set workload.mode to inference",
    ),
    (
        {
            "workload": {"mode": "training"},
            "training": {"checkpointing": {"policy": "segments", "n": 5}},
        },
        "training.checkpointing.n: got 5, expected at most num_hidden_layers (4)",
    ),
    (
        {"model": {"hidden_size": "1M", "intermediate_size": "1M", "num_hidden_layers": 4096}},
        "model: got 13,512,449,223,294,976 parameters, expected at most 1,125,899,906,842,624",
    ),
    (
        {"workload": {"context": 1 << 30, "batch": 65536}},
        "workload.context: got 1,073,741,824 for a batch of 65,536: a hidden state of "
        "9,007,199,254,740,992 elements, expected at most 1,125,899,906,842,624",
    ),
]
WELL: list[dict[str, Any]] = [
    {},
    {"model": {"num_key_value_heads": 1}},
    {"model": {"head_dim": 34}, "kv_cache": {"group_size": 64}},
    {"kv_cache": {"group_size": 4096}},
    {"kv_cache": {"group_size": 24, "dtype": "fp8"}},
    {"model": {"sliding_window": 64, "global_attention_every": 4}},
    {"workload": {"new_tokens": 511}},
    {"workload": {"mode": "training", "new_tokens": 512}},
    {"model": {"vision": "siglip-base"}, "workload": {"context": 205}},
    {"model": {"vision": "siglip-base"}, "workload": {"context": 197, "mode": "training"}},
    {"weights": {"format": "int4", "embedding_dtype": "int8"}},
    {"training": {"checkpointing": {"policy": "segments", "n": 5}}},
    {
        "workload": {"mode": "training"},
        "training": {"checkpointing": {"policy": "none", "n": 5}},
    },
]


def changed(change: dict[str, Any]) -> dict[str, Any]:
    return merged(load_profile("tiny").model_dump(), change)


@pytest.mark.parametrize(("change", "line"), BROKEN, ids=[line[:40] for _, line in BROKEN])
def test_a_broken_rule_says_what_to_do(change: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Profile.model_validate(changed(change))
    assert line in caught.value.problems


@pytest.mark.parametrize("change", WELL, ids=str)
def test_what_no_rule_forbids_is_accepted(change: dict[str, Any]) -> None:
    assert Profile.model_validate(changed(change)).name == "tiny"


def test_rules_are_judged_beside_wrong_fields() -> None:
    """A wrong field hides only the rules that need it, so that one run shows all there is."""
    change = {
        "model": {"num_key_value_heads": 3, "head_dim": "wide"},
        "workload": {"new_tokens": 600},
    }
    with pytest.raises(ConfigError) as caught:
        Profile.model_validate(changed(change))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "model.head_dim",
        "model.num_key_value_heads",
        "workload.new_tokens",
    ]


def test_a_rule_is_not_judged_on_the_default_of_a_wrong_field() -> None:
    """A context that cannot be read is not taken for the default of 4096."""
    with pytest.raises(ConfigError) as caught:
        Profile.model_validate(changed({"workload": {"context": -1, "new_tokens": 5000}}))
    [problem] = caught.value.problems
    assert problem.startswith("workload.context: got -1,")
