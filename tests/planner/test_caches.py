"""Caches of `generate()` are planned as they are simulated, and hold what they have room for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny_models import tiny_config
from tests.planner.test_transformers_engine import CARD, KINDS, LLAMA, RUNS, a_run, both
from tritter_mem.config.named_profile import NamedCache, NamedProfile, NamedWorkload
from tritter_mem.config.profile import Gpu
from tritter_mem.errors import ConfigError
from tritter_mem.models.shape_tensors import NotPlannedError
from tritter_mem.models.transformers_run import TransformersRun, transformers_run
from tritter_mem.planner.compose import plan
from tritter_mem.planner.result import planned_result
from tritter_mem.planner.solve import find_largest, with_value
from tritter_mem.planner.transformers_engine import plan_transformers, play_run
from tritter_mem.results.run import MemoryUse

STATIC = {"implementation": "static"}
QUANTO = {"implementation": "quantized", "q_group_size": 2}
FLOAT8 = {"implementation": "quantized", "backend": "fp8"}


def cached(values: dict[str, Any], cache: dict[str, Any], **changes: Any) -> TransformersRun:
    run = a_run(values | {"attention_dropout": 0.0}, **changes)
    return replace(run, cache=NamedCache.model_validate(cache))


def agree(planned: MemoryUse, simulated: MemoryUse, blocks: int = 1) -> None:
    """Peaks of each phase are equal, but for so many small blocks."""
    for found, wanted in zip(planned.phases, simulated.phases, strict=True):
        off = abs(found.allocated_peak_bytes - wanted.allocated_peak_bytes)
        assert off <= 512 * blocks, (found, wanted)
        assert found.components.kv_cache_bytes == wanted.components.kv_cache_bytes
    assert (planned.reserved_peak_bytes or 0) >= (simulated.reserved_peak_bytes or 0)


@pytest.mark.parametrize("kind", ["whole", "chunks"])
@pytest.mark.parametrize(
    "name",
    ["llama", "gemma3_text", "gpt_oss", "llama4_text", "deepseek_v32", "qwen3_5_text",
     "longcat_flash", "minimax_m3_vl_text"],
)  # fmt: skip
def test_a_static_cache_is_planned_as_it_is_simulated(name: str, kind: str) -> None:
    agree(*both(cached(tiny_config(name, 0), STATIC, **RUNS[kind])))


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_static_cache_has_room_for_all_tokens_from_the_first_one_on(kind: str) -> None:
    values = KINDS[kind]
    run = cached(values, STATIC | {"max_cache_len": 1000}, work={"batch": 3})
    head_dim, heads, size = 64, values["num_key_value_heads"], 2
    rooms = [1000, 16] if kind == "gemma3" else [1000, 1000]
    _, *phases = plan_transformers(run, CARD).phases
    for phase in phases:
        held = sum(2 * 3 * heads * room * head_dim * size for room in rooms)
        assert phase.components.kv_cache_bytes == held


def test_a_static_cache_is_said_to_be_without_compiled_steps() -> None:
    for use in both(cached(LLAMA, STATIC)):
        assert "disable_compile=True" in (use.caveat or "")
    assert plan_transformers(cached(LLAMA, {}), CARD).caveat is None


def test_a_static_cache_is_as_long_as_what_is_generated() -> None:
    use = plan_transformers(cached(LLAMA, STATIC, work={"context": 300}), CARD)
    assert use.components.kv_cache_bytes == 2 * 2 * 2 * 299 * 64 * 2


def test_values_of_another_width_are_said_to_have_no_static_cache_in_chunks() -> None:
    run = cached(tiny_config("mimo_v2_flash", 0), STATIC, **RUNS["chunks"])
    with pytest.raises(NotPlannedError, match="values as wide as keys"):
        plan_transformers(run, CARD)


CODED: dict[str, dict[str, Any]] = {
    "quanto": QUANTO,
    "quanto, 2 bits, along the last axis, coded often": QUANTO
    | {"nbits": 2, "axis_key": -1, "axis_value": -1, "residual_length": 4},
    "fp8": FLOAT8,
}


@pytest.mark.parametrize("kind", ["whole", "chunks"])
@pytest.mark.parametrize("cache", CODED)
@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_a_quantized_cache_is_planned_as_it_is_simulated(name: str, cache: str, kind: str) -> None:
    more = RUNS[kind] if kind == "chunks" else {}  # a prompt in whole groups
    planned, simulated = both(cached(tiny_config(name, 0), CODED[cache], **more))
    for found, wanted in zip(planned.phases, simulated.phases, strict=True):
        assert found.allocated_peak_bytes == wanted.allocated_peak_bytes
    assert (planned.reserved_peak_bytes or 0) >= (simulated.reserved_peak_bytes or 0)


def test_quantized_caches_hold_codes_and_scales_by_hand() -> None:
    """2 layers of keys and values, 2 sequences, 2 heads of 64 channels, 250 of 255 tokens coded."""
    grouped = {"implementation": "quantized", "residual_length": 10}
    work = {"context": 256, "new_tokens": 56, "batch": 2}
    _, _, decode = plan_transformers(cached(LLAMA, grouped, work=work), CARD).phases
    coded, waiting = 250 * 2 * 2 * 64, 5 * 2 * 2 * 64
    held = 2 * 2 * (coded // 2 + coded // 64 * (2 + 2) + waiting * 2)
    assert held <= decode.components.kv_cache_bytes <= held + held // 2
    _, _, decode = plan_transformers(cached(LLAMA, FLOAT8, work=work), CARD).phases
    held = 2 * 2 * 255 * 2 * 2 * 64
    assert held <= decode.components.kv_cache_bytes <= held + held // 2


def most(run: TransformersRun, component: str, *, every_token: bool) -> int:
    """The most bytes that are asked for at once, of a component or of all."""
    requests = play_run(run, CARD, every_token=lambda _: every_token).requests
    live = highest = 0
    for event in requests.events:
        number = event if event >= 0 else ~event
        if component in ("", requests.components[number]):
            live += requests.sizes[number] if event >= 0 else -requests.sizes[number]
            highest = max(highest, live)
    return highest


@pytest.mark.parametrize("kind", ["llama", "gemma3", "deepseek"])
@pytest.mark.parametrize(
    "cache", [{}, STATIC, FLOAT8, QUANTO, QUANTO | {"residual_length": 50}], ids=str
)
def test_the_last_token_is_planned_with_all_that_are_cached_before_it(
    kind: str, cache: dict[str, Any]
) -> None:
    """However many are generated, most of which are not run."""
    run = cached(KINDS[kind], cache, work={"context": 250, "new_tokens": 150, "batch": 8})
    for component in ("", "kv_cache"):
        found, wanted = (most(run, component, every_token=every) for every in (False, True))
        assert found == wanted


def test_many_generated_tokens_are_planned_as_they_are_simulated() -> None:
    work = {"context": 150, "new_tokens": 100, "batch": 32}
    planned, simulated = both(cached(LLAMA, {}, work=work))
    assert planned.allocated_peak_bytes == pytest.approx(simulated.allocated_peak_bytes, rel=0.01)


def named(model: dict[str, Any], cache: dict[str, Any]) -> NamedProfile:
    return NamedProfile.model_validate({"name": "x", "model": model, "kv_cache": cache})


@pytest.mark.parametrize("kind", ["gemma3", "gpt-oss"])
def test_windows_have_no_quantized_cache(kind: str) -> None:
    with pytest.raises(ConfigError, match="layers all have full attention"):
        plan(named(KINDS[kind], FLOAT8), CARD)


@pytest.mark.parametrize("values", [{"nbits": 3}, {"nbits": 8}, {"axis_key": 1}, {"backend": "x"}])
def test_what_a_backend_does_not_take_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"kv_cache.{next(iter(values))}"):
        named(LLAMA, {"implementation": "quantized"} | values)


def test_a_token_of_a_quantized_cache_is_said_with_its_part_of_scales() -> None:
    facts = planned_result(named(LLAMA, {"implementation": "quantized"})).model
    assert facts.kv_bytes_per_token == 2 * 2 * 128 * (4 + 2 * 16 / 64) / 8


@pytest.mark.parametrize("cache", [STATIC, FLOAT8, {"implementation": "quantized"}], ids=str)
def test_the_largest_context_fits_where_it_is_simulated(cache: dict[str, Any]) -> None:
    from tritter_mem.simulation.transformers_model import simulate_transformers

    work = {"new_tokens": 3, "batch": 8}
    gpu = {"name": "h100", "budget": CARD.context_bytes + (96 << 20)}
    profile = named(LLAMA, cache).model_copy(
        update={"workload": NamedWorkload.model_validate(work), "gpu": Gpu.model_validate(gpu)}
    )
    found = find_largest(profile, "context")
    assert found.value is not None
    assert found.next_footprint_bytes is not None
    assert found.footprint_bytes <= found.budget_bytes < found.next_footprint_bytes
    run = transformers_run(with_value(profile, "context", found.value))
    assert simulate_transformers(run, CARD).footprint_bytes <= found.budget_bytes


@pytest.mark.parametrize("cache", [STATIC, FLOAT8, {"implementation": "quantized"}], ids=str)
@settings(deadline=None, max_examples=5)
@given(context=st.integers(20, 600), batch=st.integers(1, 4), more=st.integers(1, 200))
def test_more_tokens_and_sequences_never_plan_less(
    cache: dict[str, Any], context: int, batch: int, more: int
) -> None:
    def allocated(context: int, batch: int) -> int:
        work = {"context": context, "batch": batch}
        return plan_transformers(cached(LLAMA, cache, work=work), CARD).allocated_peak_bytes

    least = allocated(context, batch)
    assert allocated(context + more, batch) >= least
    assert allocated(context, batch + 1) >= least
