"""Curves of memory against context are the plan's own figures, and meet the budget as it does."""

import pytest

from tritter_mem.config.loading import load_profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.planner.compose import budget_of, plan
from tritter_mem.planner.solve import context_curves
from tritter_mem.results.run import ContextCurve


def curve(name: str, dtype: str, heads: int) -> ContextCurve:
    found = context_curves(load_profile(name))
    return next(c for c in found if (c.cache_dtype, c.kv_heads) == (dtype, heads))


def test_a_point_is_what_plan_says_of_that_profile() -> None:
    settings = {"kv_cache.dtype": "int8", "model.num_key_value_heads": 8, "workload.context": 32768}
    profile = load_profile("7b", settings)
    needs = plan(profile, find_gpu(profile.gpu.name), plays=False).footprint_bytes
    assert dict(curve("7b", "int8", 8).points)[32768] == needs


def test_the_longest_context_fits_and_one_more_token_does_not() -> None:
    found = curve("7b", "int4", 32).largest_context
    assert found
    for tokens, fits in ((found, True), (found + 1, False)):
        profile = load_profile("7b", {"workload.context": tokens})
        card = find_gpu(profile.gpu.name)
        assert (plan(profile, card).footprint_bytes <= budget_of(profile, card)) is fits


def test_every_type_is_drawn_for_the_usual_head_counts_and_one_curve_is_the_profiles_own() -> None:
    found = context_curves(load_profile("7b-128k-gqa"))
    assert {(c.cache_dtype, c.kv_heads) for c in found} == {
        (dtype, heads) for dtype in ("bfloat16", "int8", "int4", "int2") for heads in (32, 8)
    }
    assert [(c.cache_dtype, c.kv_heads) for c in found if c.own] == [("int4", 8)]


@pytest.mark.parametrize("name", ["7b", "tiny", "7b-streaming-4k"])
def test_points_ascend_and_hold_the_profiles_own_context(name: str) -> None:
    profile = load_profile(name)
    for found in context_curves(profile):
        lengths, needs = zip(*found.points, strict=True)
        assert list(lengths) == sorted(set(lengths))
        assert list(needs) == sorted(needs)
        assert profile.workload.context in lengths


def test_a_cache_that_the_rules_refuse_has_no_curve() -> None:
    """int4 groups need heads that they divide; what cannot be built is not drawn."""
    profile = load_profile("tiny", {"kv_cache.dtype": "fp8"})
    assert {"fp8", "bfloat16"} <= {c.cache_dtype for c in context_curves(profile)}


def test_training_has_no_cache_and_no_curves() -> None:
    assert context_curves(load_profile("tiny", {"workload.mode": "training"})) == ()
