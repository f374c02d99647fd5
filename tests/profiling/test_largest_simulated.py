"""What is solved for by simulation fits when it is simulated, and half a percent more does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.largest import footprint_bytes
from tests.models.tiny_models import tiny_config
from tritter_mem.config.loading import load_any
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.planner.solve import find_largest, with_value
from tritter_mem.profiling.largest_simulated import find_largest_simulated, search
from tritter_mem.results.largest import Unknown


@settings(deadline=None)
@given(
    last=st.integers(10, 1 << 20), guess=st.integers(10, 1 << 21), limit=st.sampled_from([1 << 21])
)
def test_the_search_ends_at_the_last_value_that_fits(last: int, guess: int, limit: int) -> None:
    low, high = search(lambda value: value - last, 10, guess, limit)
    assert low <= last
    assert high is not None
    assert last < high <= low + max(1, low // 200)


def test_where_more_fits_again_one_percent_more_does_not() -> None:
    """As reserved memory does, what is needed rises and falls."""
    fits = {*range(10, 1001), *range(1004, 1011), *range(1014, 1022)}
    low, high = search(lambda value: -1 if value in fits else 1, 10, 990, 5000)
    assert (low, high) == (1021, 1026)
    assert low + low // 100 not in fits


@pytest.mark.parametrize("guess", [10, 500, 1000])
def test_where_all_fits_the_limit_is_the_answer(guess: int) -> None:
    assert search(lambda value: -1, 10, guess, 1000) == (1000, None)


@pytest.mark.parametrize("unknown", ["context", "batch"])
def test_a_bundled_profile_is_solved_by_simulation(unknown: Unknown) -> None:
    profile = load_any("tiny", {"gpu.budget": "440 MiB"})
    found = find_largest_simulated(profile, unknown)
    assert found.basis == "simulated"
    assert found.value is not None
    assert found.next_footprint_bytes is not None
    assert found.footprint_bytes <= found.budget_bytes < found.next_footprint_bytes


def test_a_named_model_is_solved_by_simulation(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama", 1)))
    profile = load_any(str(tmp_path), {"gpu.budget": "450 MiB", "workload.new_tokens": 2})
    found = find_largest_simulated(profile, "context")
    assert found.value is not None
    assert found.next_footprint_bytes is not None
    assert found.footprint_bytes <= found.budget_bytes < found.next_footprint_bytes


def test_where_nothing_fits_the_smallest_is_named() -> None:
    found = find_largest_simulated(load_any("tiny", {"gpu.budget": "1 MiB"}), "batch")
    assert found.value is None
    assert found.next_value == 1
    assert found.footprint_bytes > found.budget_bytes


@pytest.mark.parametrize(
    ("kind", "unknown", "settings"),
    [
        ("llama", "context", {"weights.quantization": "bitsandbytes-nf4"}),
        ("deepseek_v3", "context", {}),
        ("gemma3_text", "context", {"workload.batch": 4}),
        ("qwen3", "batch", {"workload.mode": "training", "workload.context": 64}),
    ],
)
def test_what_a_plan_names_holds_when_it_is_simulated(
    tmp_path: Path, kind: str, unknown: Unknown, settings: dict[str, Any]
) -> None:
    """And a tenth more does not, of which a segment is a part; `benchmarks.largest` takes 1%."""
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(kind, 1)))
    budget = {"gpu.budget": "480 MiB", "workload.new_tokens": 2}
    profile = load_any(str(tmp_path), budget | settings)
    found, card = find_largest(profile, unknown), find_gpu(profile.gpu.name)
    assert found.value is not None
    more = found.value + max(1, found.value // 10)
    at, behind = (
        footprint_bytes(with_value(profile, unknown, v), card) for v in (found.value, more)
    )
    assert at <= found.budget_bytes < behind
