"""Suggestions are themselves planned, and hold what they promise."""

from __future__ import annotations

import pytest

from tests.planner.cases import card
from tritter_mem.config.loading import load_profile
from tritter_mem.planner.compose import plan
from tritter_mem.planner.suggest import _cache_changes, suggest

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
        settings = [found.settings for found in suggest(profile, card(), 6 << 30)]
        assert ({"workload.batch": 1} in settings) is there


def test_the_largest_context_is_named_as_all_stands_and_with_what_costs_time_alone() -> None:
    profile = load_profile("7b", {"workload.batch": 2})
    found = [
        s.settings for s in suggest(profile, card(), BUDGET) if "workload.context" in s.settings
    ]
    assert len(found) == 2
    assert set(found[0]) == {"workload.context"}
    assert set(found[1]) == {"workload.context", "workload.prefill_chunk"}
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
