"""The specification's claims get the verdicts that arithmetic gives them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.planner.cases import tiny
from tritter_mem.config.schema import Profile
from tritter_mem.planner.answers import Planned, Simulated
from tritter_mem.planner.audit import audit, judged
from tritter_mem.results import Components, Estimate
from tritter_mem.units import GB

ROWS = {row.claim: row for row in audit()}


@pytest.mark.parametrize(
    ("claim", "low", "high", "verdict"),
    [
        ("weights, inference", 2.69, 2.71, "1.9x too low"),
        ("shadow weights, float32", 28.0, 28.1, "2.0x too low"),
        ("training, weights in all", 112.1, 112.3, "7.3x too low"),
        ("KV cache, 128K, float16", 68.7, 68.8, "right"),
        ("KV cache, 128K, fp8", 34.3, 34.4, "right"),
        ("KV cache, 128K, int4", 18.25, 18.40, "2.2x too low"),
        ("KV cache, 128K, int2", 9.6, 9.75, "2.3x too low"),
        ("KV cache, 4K window, int4", 0.53, 0.62, "close"),
        ("streaming", 3.6, 4.4, "right"),
    ],
)
def test_figures(claim: str, low: float, high: float, verdict: str) -> None:
    row = ROWS[claim]
    assert row.computed is not None
    assert low <= row.computed / GB <= high
    assert row.verdict == verdict


@pytest.mark.parametrize(
    ("claim", "percent"),
    [
        ("checkpoint all, work", 25.9),
        ("checkpoint every 4, memory", 23.4),
        ("checkpoint every 8, memory", 11.7),
        ("checkpoint every 4, work", 6.5),
        ("checkpoint every 8, work", 3.2),
    ],
)
def test_checkpointing_agrees_with_what_was_measured(claim: str, percent: float) -> None:
    assert ROWS[claim].computed == pytest.approx(percent, abs=0.3)


def test_every_section_is_there_and_only_two_claims_have_no_figure() -> None:
    sections = {part for row in ROWS.values() for part in row.section.split(", ")}
    assert sections == {
        "1.2", "2.1", "2.2", "3.1", "3.3", "4.1", "4.2", "4.3", "5.2", "8.1", "6.1", "6.2", "7.1",
        "App. A",
    }  # fmt: skip
    assert [row.verdict for row in ROWS.values() if row.computed is None] == [
        "misleading",
        "broken",
    ]


@pytest.mark.parametrize(
    ("claimed", "computed", "verdict"),
    [
        (10, 10.5, "right"),
        (10, 12, "close"),
        (10, 20, "2.0x too low"),
        (10, 5, "2.0x too high"),
    ],
)
def test_judged(claimed: float, computed: float, verdict: str) -> None:
    assert judged(claimed, computed) == verdict


class Larger(Planned):
    """Stands for another kind of answer: everything takes a tenth more."""

    def estimate(self, profile: Profile) -> Estimate:
        found = super().estimate(profile)
        parts = {
            f"{name}_bytes": 11 * size // 10 for name, size in found.components.items().items()
        }
        return replace(
            found,
            components=Components(**parts),
            allocated_peak_bytes=found.allocated_peak_bytes * 2,
            device_peak_bytes=None,
        )

    def policy(self, profile: Profile, policy: str, n: int) -> tuple[int, float]:
        peak, work = super().policy(profile, policy, n)
        return peak, 2 * work


def test_simulated_figures_stand_beside_those_of_the_same_claim() -> None:
    rows = {row.claim: row for row in audit(Larger())}
    assert rows.keys() == ROWS.keys()
    for claim, row in rows.items():
        assert replace(row, simulated=None) == ROWS[claim]
    cache, work = rows["KV cache, 128K, fp8"], rows["checkpoint every 4, work"]
    assert cache.simulated == pytest.approx(1.1 * (cache.computed or 0))
    assert work.simulated == pytest.approx(2 * (work.computed or 0))
    simulated = {claim for claim, row in rows.items() if row.simulated is not None}
    assert rows.keys() - simulated == {
        "effective 128K by a window", "managed_forward", "compute capability",
    }  # fmt: skip


def test_simulated_answers_agree_with_planned_ones() -> None:
    planned, simulated = Planned(), Simulated()
    for profile in (tiny(), tiny(workload__mode="training")):
        one, other = planned.estimate(profile), simulated.estimate(profile)
        assert other.allocated_peak_bytes == pytest.approx(one.allocated_peak_bytes, rel=0.02)
        assert simulated.estimate(profile) is other  # each profile once
    training = tiny(workload__mode="training")
    for answers in (planned, simulated):
        none, all_layers = (answers.policy(training, p, 1) for p in ("none", "every-layer"))
        assert none[1] == 0
        assert all_layers[0] < none[0]
        assert 0.2 < all_layers[1] < 0.27
