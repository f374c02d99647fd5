"""The specification's claims get the verdicts that arithmetic gives them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.planner.cases import tiny
from tests.report.records import record
from tritter_mem.config.loading import load_profile
from tritter_mem.config.profile import Profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.evidence.audit import Measured, Planned, Simulated, audit, judged
from tritter_mem.planner.compose import plan
from tritter_mem.results.run import Components, MemoryUse, OutOfMemory, Result
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

    def use(self, profile: Profile) -> MemoryUse:
        found = super().use(profile)
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
        one, other = planned.use(profile), simulated.use(profile)
        assert other.allocated_peak_bytes == pytest.approx(one.allocated_peak_bytes, rel=0.02)
        assert simulated.use(profile) is other  # each profile once
    training = tiny(workload__mode="training")
    for answers in (planned, simulated):
        none, all_layers = (answers.policy(training, p, 1) for p in ("none", "every-layer"))
        assert none[1] == 0
        assert all_layers[0] < none[0]
        assert 0.2 < all_layers[1] < 0.27


def run_of(name: str, device: str = "cuda:0", **parts: object) -> Result:
    """A record whose plan stands for what was measured, of another card to fit."""
    profile = load_profile(name, {"gpu.name": "h100", "name": "another name"})
    measured = replace(plan(profile, find_gpu("h100")), device=device, **parts)  # type: ignore[arg-type]
    return record(profile=profile.model_dump(), measured=measured)


def test_measured_figures_stand_where_a_run_tells_them_and_nowhere_else() -> None:
    rows = {row.claim: row for row in audit(measured=Measured([run_of("7b")]))}
    told = {claim for claim, row in rows.items() if row.measured is not None}
    assert told == {"weights, inference", "all of it", "forward activations", "peak activations",
                    "maximum-context"}  # fmt: skip
    row = rows["weights, inference"]
    assert row.measured == row.computed
    assert row.verdict == ROWS["weights, inference"].verdict  # by formula, whatever is measured
    assert all(row.simulated is None for row in rows.values())


def test_a_training_run_tells_of_training() -> None:
    rows = audit(measured=Measured([run_of("spec-train-full-context")]))
    assert {row.claim for row in rows if row.measured is not None} == {
        "shadow weights, float32", "training, weights in all", "train-full-context",
    }  # fmt: skip


def test_without_components_a_run_tells_its_totals() -> None:
    rows = audit(measured=Measured([run_of("7b", components=Components())]))
    told = {row.claim for row in rows if row.measured is not None}
    assert told == {"all of it", "maximum-context"}


def test_runs_on_the_cpu_and_runs_out_of_memory_tell_nothing() -> None:
    refused = OutOfMemory(operator="", module="", phase="load", requested_bytes=1,
                          allocated_bytes=1, reserved_bytes=1, limit_bytes=1)  # fmt: skip
    runs = [run_of("7b", device="cpu"), run_of("7b-128k-gqa", out_of_memory=refused)]
    assert all(row.measured is None for row in audit(measured=Measured([*runs, record()])))
