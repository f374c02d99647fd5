"""Suggestions are themselves planned, and hold what they promise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.planner.cases import card
from tritter_mem.config.cards import all_cards
from tritter_mem.config.loading import load_any, load_profile
from tritter_mem.config.named_profile import NamedProfile
from tritter_mem.config.profile import changed
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.transformers_run import transformers_run
from tritter_mem.planner.compose import plan
from tritter_mem.planner.suggest import (
    Change,
    Cost,
    _cache_changes,
    _Case,
    _named_changes,
    _weight_changes,
    cards_that_fit,
    judge_with_advice,
    suggest,
)
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


EXPANDABLE = {"allocator.conf": "expandable_segments:True"}
CHUNKS = {**EXPANDABLE, "workload.prefill_chunk": 512}
SELECTIVE = {
    "training.checkpointing": {"policy": "selective-attention", "n": 1}, "workload.batch": 1,
    "training.loss_chunk": 512,
}  # fmt: skip
WINDOW = {"model.sliding_window": 4096}
SUGGESTED: dict[str, tuple[dict[str, Any], int, list[dict[str, Any]]]] = {
    "7b": ({}, 15, [
        {"kv_cache.dtype": "int2"}, WINDOW, {"model.num_key_value_heads": 8},
        WINDOW | {"model.global_attention_every": 4}, {"workload.context": 88064},
        CHUNKS | {"workload.context": 90112},
    ]),
    "spec-balanced": ({}, 15, [
        {"kv_cache.dtype": "int2"}, WINDOW, {"model.num_key_value_heads": 8},
        WINDOW | {"model.global_attention_every": 4}, {"workload.batch": 2},
        {"workload.context": 20480}, CHUNKS | {"workload.batch": 2},
        CHUNKS | {"workload.context": 21504},
    ]),
    "spec-throughput": ({}, 15, [
        {"model.num_key_value_heads": 8}, {"workload.batch": 8}, {"workload.context": 3840},
        CHUNKS | {"workload.batch": 9}, CHUNKS | {"workload.context": 4608},
    ]),
    "7b in a third": ({"workload.batch": 4}, 5, [
        CHUNKS | {"weights.embedding_dtype": "int8", "weights.format": "ternary-1.6bit",
                  "kv_cache.dtype": "int2"} | WINDOW,
        {"workload.context": 2048}, CHUNKS | {"workload.context": 2048},
    ]),
    "spec-train-development": ({}, 15, [
        SELECTIVE, {"training.optimizer": "adamw-8bit"}, {"training.optimizer": "sgd"},
    ]),
    "spec-train-efficient": ({}, 15, [SELECTIVE, {"training.optimizer": "sgd"}]),
}  # fmt: skip
"""What is changed of a profile, the budget in GiB, and each suggestion's settings in order."""


@pytest.mark.parametrize("name", SUGGESTED)
def test_what_is_suggested_and_in_which_order(name: str) -> None:
    """The figures of each are those of its plan, which `test_each_suggestion_holds` checks."""
    changes, gib, expected = SUGGESTED[name]
    profile = load_profile(name.partition(" ")[0], changes)
    found = suggest(profile, card(), gib << 30)
    assert [suggestion.settings for suggestion in found] == expected


def test_what_is_suggested_for_a_named_model() -> None:
    found = suggest(named(context=8192), find_gpu("rtx-4090"), 620 << 20)
    assert [suggestion.settings for suggestion in found] == [
        CHUNKS | {"weights.quantization": "bitsandbytes-nf4-double"},
        {"workload.context": 512},
        EXPANDABLE | {"workload.prefill_chunk": 2048, "workload.context": 512},
    ]


@pytest.mark.parametrize(
    ("heads", "suggested"), [(1, []), (2, [1]), (3, [1]), (4, [1]), (6, [1]), (8, [2]), (32, [8])]
)
def test_a_quarter_of_the_heads_is_suggested_for_keys_and_values(
    heads: int, suggested: list[int]
) -> None:
    changes = {"model.num_attention_heads": heads, "model.num_key_value_heads": heads}
    found = [change.settings for change in _cache_changes(load_profile("7b", changes))]
    name = "model.num_key_value_heads"
    assert [settings[name] for settings in found if name in settings] == suggested


@pytest.mark.parametrize(
    ("weights", "texts"),
    [
        ("ternary-2bit", ["1.6-bit ternary weights", "int8 embeddings"]),
        ("bfloat16", ["ternary weights (needs a model trained that way)",
                      "1.6-bit ternary weights (needs a model trained that way)", "int8 weights",
                      "int4 weights (costs quality)", "int8 embeddings"]),
        ("int4", ["ternary weights (needs a model trained that way)",
                  "1.6-bit ternary weights (needs a model trained that way)",
                  "int8 embeddings"]),
    ],
)  # fmt: skip
def test_what_smaller_weights_cost_is_said_unless_it_has_been_paid(
    weights: str, texts: list[str]
) -> None:
    found = list(_weight_changes(load_profile("7b", {"weights.format": weights})))
    assert [change.text for change in found] == texts
    assert {change.cost is Cost.QUALITY for change in found if "(" in change.text} <= {True}
    assert {change.cost is Cost.LITTLE for change in found if "(" not in change.text} == {True}


@pytest.mark.parametrize(
    ("context", "chunks"),
    [(100, [2048, 512]), (32_768, [2048, 512]), (65_536, [4096, 1024]), (100_000, [4096, 1024])],
)
def test_chunks_are_a_sixteenth_of_the_prompt_and_a_quarter_of_that(
    context: int, chunks: list[int]
) -> None:
    found = [change.settings for change in _named_changes(named(context=context))]
    name = "workload.prefill_chunk"
    assert [settings[name] for settings in found if name in settings] == chunks


def test_cards_are_named_where_a_profile_does_not_fit_and_nowhere_else() -> None:
    for budget, fits in ((BUDGET, False), (64 << 30, True)):
        profile = load_profile("7b")
        use = plan(profile, card())
        verdict = judge_with_advice(profile, card(), {"planned": use}, budget)
        assert verdict is not None
        assert verdict.fits is fits
        wanted = () if fits else cards_that_fit(profile, use.footprint_bytes)
        assert verdict.cards == wanted
        assert bool(wanted) is not fits


def test_a_card_whose_whole_budget_is_needed_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards come in the order of their memory, and no more than four."""
    profile = load_profile("7b")
    least = min(c.default_budget_bytes for c in all_cards() if c.vendor == "nvidia")

    def planned(more: int) -> None:
        monkeypatch.setattr(
            "tritter_mem.planner.suggest.plan",
            lambda _, card: SimpleNamespace(footprint_bytes=card.default_budget_bytes + more),
        )

    planned(0)
    names = cards_that_fit(profile, least)
    budgets = [find_gpu(name).default_budget_bytes for name in names]
    assert len(names) == 4
    assert budgets == sorted(budgets)
    assert budgets[0] == least
    assert least not in [
        find_gpu(name).default_budget_bytes for name in cards_that_fit(profile, least + 1)
    ]
    planned(1)
    assert cards_that_fit(profile, least) == ()


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


def test_of_changes_that_were_not_judged_the_first_of_its_kind_is_laid() -> None:
    class Case(_Case):
        def least_bytes(self, change: Change) -> int:  # nothing is enough
            return self.budget_bytes + 1

    profile = named()
    case = Case(profile, find_gpu("rtx-4090"), 1 << 30, plan(profile, find_gpu("rtx-4090")))
    changes = [Change(str(chunk), {"workload.prefill_chunk": chunk}) for chunk in (512, 256)]
    laid, found = case.together(changes, [])
    assert (laid.settings, found) == ({"workload.prefill_chunk": 512}, None)
