"""Caches of `generate()` are planned as they are simulated, and hold what they have room for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny_models import tiny_config
from tests.planner.test_transformers_engine import CARD, KINDS, LLAMA, RUNS, a_run, both
from tritter_mem.config.named_profile import NamedCache
from tritter_mem.models.shape_tensors import NotPlannedError
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.planner.transformers_engine import plan_transformers
from tritter_mem.results.run import MemoryUse

STATIC = {"implementation": "static"}


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
    ["llama", "gemma3_text", "gpt_oss", "llama4_text", "deepseek_v3", "deepseek_v32",
     "qwen3_5_text", "falcon_h1", "gemma4_text"],
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


def test_a_static_cache_is_as_long_as_what_is_generated() -> None:
    use = plan_transformers(cached(LLAMA, STATIC, work={"context": 300}), CARD)
    assert use.components.kv_cache_bytes == 2 * 2 * 2 * 299 * 64 * 2


def test_values_of_another_width_are_said_to_have_no_static_cache_in_chunks() -> None:
    run = cached(tiny_config("mimo_v2_flash", 0), STATIC, **RUNS["chunks"])
    with pytest.raises(NotPlannedError, match="values as wide as keys"):
        plan_transformers(run, CARD)


@pytest.mark.parametrize("cache", [STATIC])
@settings(deadline=None, max_examples=12)
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
