"""More never plans less, and the solver's answer is exact."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planner.cases import card, profiles, tiny
from tritter_mem.config.loading import load_any, load_profile
from tritter_mem.config.profile import Profile, changed
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.planner.compose import plan
from tritter_mem.planner.solve import (
    _Solver,
    _with_more,
    context_curves,
    find_largest,
    largest_below,
    smallest,
    solve,
    solve_roughly,
    with_value,
)
from tritter_mem.results.largest import Unknown


def footprint(profile: Profile) -> int:
    return plan(profile, card()).footprint_bytes


def allocated(profile: Profile) -> int:
    """What is reserved beside it depends on which free block a request finds: more may be less."""
    return plan(profile, card(), plays=False).footprint_bytes


@settings(deadline=None)
@given(profile=profiles(), more=st.integers(1, 300))
def test_more_context_never_plans_less(profile: Profile, more: int) -> None:
    longer = with_value(profile, "context", profile.workload.context + more)
    assert allocated(longer) >= allocated(profile)


@settings(deadline=None)
@given(profile=profiles(), more=st.integers(1, 20))
def test_more_batch_never_plans_less(profile: Profile, more: int) -> None:
    larger = with_value(profile, "batch", profile.workload.batch + more)
    assert allocated(larger) >= allocated(profile)


@settings(deadline=None)
@given(profile=profiles(), more=st.integers(1, 20))
def test_more_layers_never_plan_less(profile: Profile, more: int) -> None:
    # Whole turns of the pattern of global layers: one layer more may be a global one less.
    every = profile.model.global_attention_every or 1
    layers = profile.model.num_hidden_layers + more * every
    assert allocated(changed(profile, {"model.num_hidden_layers": layers})) >= allocated(profile)


@settings(deadline=None, max_examples=30)
@given(profile=profiles(), unknown=st.sampled_from(("context", "batch")), share=st.floats(1, 4))
def test_the_answer_fits_and_the_next_does_not(
    profile: Profile, unknown: Unknown, share: float
) -> None:
    budget = int(footprint(profile) * share)
    found = solve(profile, card(), budget, unknown)
    if found is None:
        assert footprint(with_value(profile, unknown, smallest(profile, unknown))) > budget
        return
    assert footprint(with_value(profile, unknown, found)) <= budget
    assert footprint(with_value(profile, unknown, found + 1)) > budget


@pytest.mark.parametrize(("limit", "found"), [(0, None), (1, 1), (7, 7), (99, 99), (1000, 100)])
def test_largest_of_a_range(limit: int, found: int | None) -> None:
    assert largest_below(lambda value: value - limit, 1, 100) == found


@settings(deadline=None)
@given(
    low=st.integers(1, 1 << 10),
    width=st.integers(1, 1 << 30),
    share=st.floats(0, 1),
    step=st.integers(1, 1 << 20),
    power=st.floats(0.3, 3),
)
def test_the_largest_of_what_grows_in_steps_is_found_with_few_looks(
    low: int, width: int, share: float, step: int, power: float
) -> None:
    """The last value that fits; one look more than by halving at most, and at both ends."""
    at, looks = low + int(width * share), []

    def over(value: int) -> int:
        looks.append(value)
        distance = abs(value - at) ** power // step * step
        return -int(distance) if value <= at else int(distance) + 1

    assert largest_below(over, low, low + width) == min(at, low + width)
    assert len(looks) <= width.bit_length() + 4
    assert len(looks) == len(set(looks))


def test_largest_says_what_one_more_needs() -> None:
    found = find_largest(load_profile("7b-128k-gqa"), "context")
    assert found.value is not None
    assert found.footprint_bytes <= found.budget_bytes < (found.next_footprint_bytes or 0)


def test_what_is_found_is_planned_with_every_token() -> None:
    """The search plans fewer tokens; cached memory is released at the largest context."""
    profile = load_any("qwen3-8b", {"gpu.name": "rtx-4090", "workload.new_tokens": 16})
    found, gpu = find_largest(profile, "context"), find_gpu("rtx-4090")
    assert found.value is not None
    whole = plan(with_value(profile, "context", found.value), gpu)
    assert whole.cache_releases
    assert found.footprint_bytes == whole.footprint_bytes <= found.budget_bytes
    more = plan(with_value(profile, "context", found.value + 1), gpu)
    assert found.next_footprint_bytes == more.footprint_bytes > found.budget_bytes


def test_the_largest_is_looked_for_behind_some_that_do_not_fit() -> None:
    """What the allocator reserves beside tensors rises and falls."""
    profile = tiny(
        weights__format="bfloat16", gpu__budget="770 MiB", workload__context=4096,
        workload__prefill_chunk=100,
    )  # fmt: skip
    found, budget = find_largest(profile, "batch"), 770 << 20
    assert found.value is not None
    fits = {
        batch for batch in range(100, 150)
        if footprint(with_value(profile, "batch", batch)) <= budget
    }  # fmt: skip
    assert found.value == max(fits)
    assert fits != set(range(100, found.value + 1))


def test_of_values_that_fit_behind_others_the_last_of_the_largest_is_found() -> None:
    """From 260 down in steps of a 16th of the distance; then up to a hundredth ahead."""

    def over(value: int) -> int:
        return -1 if value <= 100 or 200 <= value <= 208 or value == 211 else 1

    assert _with_more(over, 100, 260) == 208
    assert _with_more(lambda value: value - 300, 100, 260) == 260
    assert _with_more(lambda value: value - 100, 100, 260) == 100
    assert _with_more(lambda value: value - 100, 100, 100) == 100


@pytest.mark.parametrize("high", [1, 3, 7, 100, 255, 256, 1000, 100_000])
def test_what_fits_in_brief_alone_is_left_in_few_steps(
    high: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = _Solver(tiny(), card(), 0, "batch")
    for limit in {0, 1, high // 3, high - 2, high - 1, high}:
        looks = []

        def over(value: int, limit: int = limit, looks: list[int] = looks) -> int:
            looks.append(value)
            return value - limit

        monkeypatch.setattr(solver, "_over", over)
        assert solver._largest_at_most(high, 1) == (limit if limit > 0 else None)
        assert len(looks) <= 3 * high.bit_length() + 6


def test_few_values_are_planned_with_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search looks at allocated memory and brief plans; what is said is planned in full."""
    kinds: list[str] = []

    def counted(*given: Any, plays: bool = True, briefly: bool = False) -> Any:
        kinds.append("full" if plays and not briefly else "quick")
        return plan(*given, plays=plays, briefly=briefly)

    monkeypatch.setattr("tritter_mem.planner.solve.plan", counted)
    profile = load_any("qwen3-0.6b", {"gpu.name": "rtx-4090", "workload.new_tokens": 16})
    assert find_largest(profile, "batch").value is not None
    assert kinds.count("full") <= 4 < kinds.count("quick")


@pytest.mark.parametrize(("releases", "plans"), [(0, [True]), (1, [True, False])])
def test_a_brief_plan_stands_for_the_whole_one_where_nothing_is_released(
    releases: int, plans: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    def planned(_: Profile, __: Any, *, briefly: bool) -> Any:
        made.append(briefly)
        return SimpleNamespace(briefly=briefly, cache_releases=releases)

    monkeypatch.setattr("tritter_mem.planner.solve.plan", planned)
    solver = _Solver(tiny(), card(), 1 << 30, "batch")
    for briefly in (True, True, False, False, True):
        found = solver.plan(5, briefly=briefly)
    assert made == plans
    assert found.briefly is plans[-1]  # type: ignore[attr-defined]


def test_nothing_fits() -> None:
    found = find_largest(tiny(gpu__budget="1 MiB"), "batch")
    assert found.value is None
    assert found.footprint_bytes > found.budget_bytes


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_a_rough_batch_is_the_exact_one(batch: int) -> None:
    budget = footprint(tiny(workload__batch=batch))
    exact = solve(tiny(), card(), budget, "batch")
    found = solve_roughly(tiny(), card(), budget, "batch", 100)
    assert found is not None
    assert found[0] == exact


@pytest.mark.parametrize(("most", "unit"), [(3000, 256), (30_000, 256), (131_072, 2048)])
def test_a_rough_context_is_a_multiple_that_fits_where_one_more_does_not(
    most: int, unit: int
) -> None:
    profile = load_profile("7b-128k-gqa")
    budget = footprint(with_value(profile, "context", most * 2 // 3))
    found = solve_roughly(profile, card(), budget, "context", most)
    assert found is not None
    value, use = found
    assert value % unit == 0
    assert use == plan(with_value(profile, "context", value), card())
    assert use.footprint_bytes <= budget
    more = value + unit
    assert more > most or footprint(with_value(profile, "context", more)) > budget


def test_curves_have_four_lengths_an_octave_and_the_heads_from_many_to_few() -> None:
    curves = context_curves(load_profile("7b-128k-gqa", {"workload.context": 5000}))
    assert [length for length, _ in curves[0].points] == [
        4096, 5000, 5120, 6144, 7168, 8192,
    ]  # fmt: skip
    heads = [curve.kv_heads for curve in curves]
    assert heads == sorted(heads, reverse=True)
    assert len(set(heads)) > 1


@pytest.mark.parametrize(("sinks", "least"), [(0, 8), (5, 8), (20, 21)])
def test_the_shortest_context_is_a_token_more_than_is_generated_or_kept(
    sinks: int, least: int
) -> None:
    profile = tiny(workload__new_tokens=7, kv_cache__attention_sinks=sinks)
    assert smallest(profile, "context") == least
