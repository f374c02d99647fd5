"""The figures of the 7B model, worked out by hand from its widths."""

from __future__ import annotations

import pytest

from tests.planner.cases import card
from tritter_mem.config.loading import load_profile
from tritter_mem.planner.case import Case
from tritter_mem.planner.compose import kv_cache_bytes, plan
from tritter_mem.planner.result import planned_result
from tritter_mem.planner.weights import embeddings_bytes, packed_linear_bytes
from tritter_mem.units import GB

# Tokens behind the 4 sinks; groups of 128 tokens; 32 layers of 32 heads of 128.
BEHIND, GROUPS, LAYERS, HEADS, WIDTH = 131_068, 1_023, 32, 32, 128


def case(name: str, settings: dict[str, int] | None = None) -> Case:
    return Case.of(load_profile(name, settings), card())


def test_parameters_and_packed_weights() -> None:
    found = case("7b")
    assert found.architecture.linear_parameters == 6_476_005_376
    assert found.architecture.embedding_parameters == 536_870_912
    assert packed_linear_bytes(found) == 1_619_001_344
    assert embeddings_bytes(found) == 1_073_741_824


def test_kv_cache_by_hand() -> None:
    keys = GROUPS * (128 * WIDTH // 2 + 2 * 2 * WIDTH)
    values = BEHIND * (WIDTH // 2 + 2 * 2)
    tail_and_sinks = 128 * WIDTH * 2 + 2 * 4 * WIDTH * 2
    found = kv_cache_bytes(case("7b"))
    assert found == LAYERS * HEADS * (keys + values + tail_and_sinks)
    assert 18.25 * GB <= found <= 18.40 * GB


def test_bytes_a_token() -> None:
    """4.25 bits an element: 139,264 bytes a token with 32 KV heads, 34,816 with 8."""
    for name, a_token in (("7b", 139_264), ("7b-128k-gqa", 34_816)):
        more = case(name, {"workload.context": 131_072 + 128})
        assert kv_cache_bytes(more) - kv_cache_bytes(case(name)) == 128 * a_token


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("7b", False),
        ("7b-128k-gqa", True),
        ("7b-128k-hybrid", True),
        ("7b-128k-int2", True),
        ("7b-streaming-4k", True),
        ("spec-maximum-context", False),
        ("spec-balanced", False),
        ("spec-throughput", False),
        ("spec-streaming", True),
        ("spec-train-full-context", False),
        ("spec-train-efficient", False),
        ("spec-train-development", False),
    ],
)
def test_what_fits_a_16_gb_card(name: str, fits: bool) -> None:
    verdict = planned_result(load_profile(name)).verdict
    assert verdict is not None
    assert verdict.budget_bytes == 15 << 30
    assert verdict.fits is fits


def test_training_state_is_112_gb() -> None:
    """28.1 GB each of weights and gradients, 56.1 GB of AdamW's moments, before activations."""
    profile = load_profile("7b", {"workload.mode": "training", "workload.context": 8})
    optimizer = next(p for p in plan(profile, card()).phases if p.name == "optimizer").components
    assert optimizer is not None
    state = optimizer.weights_bytes + optimizer.embeddings_bytes + optimizer.gradients_bytes
    assert (state + optimizer.optimizer_state_bytes) / GB == pytest.approx(112.2, abs=0.1)
