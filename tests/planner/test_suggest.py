"""Suggestions are themselves planned, and hold what they promise."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planner.cases import card
from tritter_mem.config.loading import load_any, load_profile
from tritter_mem.config.named_profile import NamedProfile
from tritter_mem.config.profile import changed
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.transformers_run import transformers_run
from tritter_mem.planner.compose import plan
from tritter_mem.planner.suggest import _cache_changes, suggest
from tritter_mem.results.run import Suggestion

BUDGET = 15 << 30
CASES = [
    "7b", "spec-balanced", "spec-throughput", "spec-train-development", "spec-train-efficient",
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_suggestion_holds(name: str) -> None:
    profile = load_profile(name)
    found = suggest(profile, card(), BUDGET)
    assert found
    for suggestion in found:
        need = plan(load_profile(name, suggestion.settings), card()).footprint_bytes
        assert suggestion.headroom_bytes == BUDGET - need
        assert suggestion.fits is (need <= BUDGET)
        assert suggestion.saves_bytes == plan(profile, card()).footprint_bytes - need


def test_the_7b_fits_with_8_kv_heads() -> None:
    found = suggest(load_profile("7b"), card(), BUDGET)
    heads = next(s for s in found if s.settings == {"model.num_key_value_heads": 8})
    assert heads.fits
    assert heads.text.startswith("8 KV heads")


NAMED = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 2,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 1000,
}  # fmt: skip


def named(**workload: Any) -> NamedProfile:
    profile = {"name": "n", "model": NAMED, "workload": workload, "gpu": {"name": "rtx-4090"}}
    return NamedProfile.model_validate(profile)


def simulated_bytes(profile: NamedProfile, budget: int) -> int:
    pytest.importorskip("transformers")
    from tritter_mem.simulation.transformers_model import simulate_transformers

    run = transformers_run(profile)
    return simulate_transformers(run, find_gpu("rtx-4090"), budget_bytes=budget).footprint_bytes


@pytest.mark.parametrize("context", [1024, 8192])
def test_quantised_weights_are_suggested_and_hold_when_simulated(context: int) -> None:
    """The shorter context fits with 4-bit weights alone; of the longer one less is named too."""
    profile, gpu = named(context=context), find_gpu("rtx-4090")
    budget = 620 << 20
    found = suggest(profile, gpu, budget)
    kinds = {s.settings.get("weights.quantization") for s in found}
    assert {"bitsandbytes-int8", "bitsandbytes-nf4", "bitsandbytes-nf4-double"} & kinds
    fitting = [s for s in found if s.fits]
    assert any("costs quality" in s.text for s in fitting)
    for suggestion in fitting:
        assert simulated_bytes(changed(profile, suggestion.settings), budget) <= budget


def test_of_ways_to_store_the_smaller_takes_the_place_of_the_larger() -> None:
    """Put together with other changes, where one change is not enough."""
    profile = named(context=8192)
    first = suggest(profile, find_gpu("rtx-4090"), 660 << 20)[0]
    assert first.settings["weights.quantization"].startswith("bitsandbytes-nf4")
    assert len(first.settings) > 1
    assert first.fits


def release(name: str, card_name: str, **settings: Any) -> NamedProfile:
    given = {f"workload.{key}": value for key, value in settings.items()}
    profile = load_any(name, {"gpu.name": card_name, **given})
    assert isinstance(profile, NamedProfile)
    return profile


def suggested(profile: NamedProfile) -> tuple[Suggestion, ...]:
    card = find_gpu(profile.gpu.name)
    return suggest(profile, card, card.default_budget_bytes)


def test_what_costs_time_alone_comes_first_and_together_where_one_is_not_enough() -> None:
    first, *others = suggested(release("qwen3-8b", "rtx-4090", context=32768))
    assert first.fits
    assert first.settings == {
        "allocator.conf": "expandable_segments:True", "workload.prefill_chunk": 2048,
    }  # fmt: skip
    assert not any("workload.prefill_chunk" in found.settings for found in others)


def test_what_is_found_together_is_not_followed_by_changes_that_are_not_enough() -> None:
    found = suggested(release("qwen3-0.6b", "rtx-4090", mode="training", context=8192))
    assert len(found[0].settings) > 1
    assert all(suggestion.fits for suggestion in found)


def test_of_changes_that_are_not_enough_those_that_save_next_to_nothing_are_left_out() -> None:
    found = suggested(release("llama-3.3-70b", "rtx-4090"))
    assert [suggestion.settings for suggestion in found] == [
        {"weights.quantization": "bitsandbytes-int8"},
        {"weights.quantization": "bitsandbytes-nf4-double"},
    ]
    assert not any(suggestion.fits for suggestion in found)


@pytest.mark.parametrize("settings", [{}, {"context": 131072}, {"mode": "training"}])
def test_nothing_is_suggested_where_all_together_is_far_from_enough(
    settings: dict[str, Any],
) -> None:
    assert suggested(release("deepseek-r1", "h100", **settings)) == ()


def test_what_fits_needs_no_suggestion() -> None:
    assert suggest(load_profile("7b-128k-gqa"), card(), BUDGET) == ()


def test_where_one_change_is_not_enough_several_are_put_together() -> None:
    profile = load_profile("7b", {"workload.batch": 4})
    first = suggest(profile, card(), 14 << 30)[0]
    assert first.fits
    assert plan(load_profile("7b", {"workload.batch": 4, **first.settings}), card()).footprint_bytes
    tight = suggest(profile, card(), 5 << 30)
    assert len(tight[0].settings) > 1
    assert tight[0].fits


def test_training_that_no_change_makes_fit_says_so_by_what_is_left() -> None:
    found = suggest(load_profile("spec-train-full-context"), card(), BUDGET)
    assert found
    assert not any(suggestion.fits for suggestion in found)


def test_batch_1_is_suggested_where_there_is_more() -> None:
    for batch, there in ((1, False), (2, True)):
        profile = load_profile("spec-train-development", {"workload.batch": batch})
        batches = [s.settings.get("workload.batch") for s in suggest(profile, card(), 6 << 30)]
        assert (1 in batches) is there


def test_the_largest_context_is_named_as_all_stands_and_with_what_costs_time_alone() -> None:
    profile = load_profile("7b", {"workload.batch": 2})
    found = [
        s.settings for s in suggest(profile, card(), BUDGET) if "workload.context" in s.settings
    ]
    assert len(found) == 2
    assert set(found[0]) == {"workload.context"}
    assert set(found[1]) == {"workload.context", "workload.prefill_chunk", "allocator.conf"}
    assert found[1]["workload.context"] >= found[0]["workload.context"]


def test_a_window_is_suggested_from_4097_tokens_on() -> None:
    for context, there in ((4096, False), (4097, True)):
        found = _cache_changes(load_profile("7b", {"workload.context": context}))
        assert any("model.sliding_window" in change.settings for change in found) is there


def test_a_model_that_has_a_window_gets_no_other() -> None:
    profile = load_profile("7b", {"model.sliding_window": 8192})
    assert not [c for c in _cache_changes(profile) if "model.sliding_window" in c.settings]


def test_only_formats_of_fewer_bits_are_suggested() -> None:
    types = [c.settings.get("kv_cache.dtype") for c in _cache_changes(load_profile("7b"))]
    assert [name for name in types if name] == ["int2"]
    half = load_profile("7b", {"kv_cache.dtype": "bfloat16"})
    types = [c.settings.get("kv_cache.dtype") for c in _cache_changes(half)]
    assert [name for name in types if name] == ["int8", "int4", "int2"]
