"""On which rung a profile ends: simulated; measured by a function in the device's place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tritter_mem.config.loading import load_profile
from tritter_mem.config.profile import Profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import MeasureError
from tritter_mem.measure import runs
from tritter_mem.measure.target import Target
from tritter_mem.oom.ladder import Offers, Settings
from tritter_mem.planner.result import planned_result
from tritter_mem.profiling.ladder_profile import (
    measured_ladder,
    offers_of,
    profile_ladders,
    run_with,
    simulated_ladder,
)
from tritter_mem.results.run import Ladder, MemoryUse, OutOfMemory
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.simulate import simulate
from tritter_mem.units import MiB
from tritter_model.config import RunConfig

CARD = find_gpu("rtx-5080")
BUDGET = 500 * MiB
REFUSED = OutOfMemory(
    operator="aten.mm.default", module="layers.0", phase="backward",
    requested_bytes=1, allocated_bytes=2, reserved_bytes=3, limit_bytes=4,
)  # fmt: skip


def training(**changes: object) -> Profile:
    settings = {
        "workload.mode": "training", "workload.batch": 4,
        "training.checkpointing.policy": "none", "gpu.budget": BUDGET,
    }  # fmt: skip
    return load_profile("tiny", {**settings, **changes})


@pytest.fixture(scope="module")
def as_it_is() -> MemoryUse:
    return simulate(training(), card=CARD)


def ends(ladder: Ladder) -> list[tuple[str, str]]:
    return [(step.rung, step.ended) for step in ladder.steps]


def test_a_training_profile_offers_more_checkpointing_than_its_own_policy() -> None:
    assert offers_of(training()).checkpoint_every == (2, 1)
    every_2nd = {"training.checkpointing.policy": "every-nth", "training.checkpointing.n": 2}
    assert offers_of(training(**every_2nd)).checkpoint_every == (1,)


def test_a_long_context_is_offered_to_be_truncated() -> None:
    long = load_profile("tiny", {"workload.context": 8192, "workload.batch": 2})
    assert offers_of(long) == Offers(batch=2, window=4096)
    bounded = load_profile("tiny", {"workload.context": 8192, "model.sliding_window": 1024})
    assert offers_of(bounded).window is None


def test_settings_of_a_rung_reach_the_model() -> None:
    case = run_with(training(), Settings(checkpoint_every=1, micro_batch=2, window=64), CARD)
    assert (case.training.checkpointing, case.training.micro_batch) == ("every-layer", 2)
    assert (case.batch, case.model.sliding_window) == (4, 64)
    inference = load_profile("tiny", {"workload.batch": 4})
    assert run_with(inference, Settings(micro_batch=2), CARD).batch == 2


def test_simulated_ladder_ends_on_the_first_rung_within_the_budget(as_it_is: MemoryUse) -> None:
    ladder = simulated_ladder(training(), CARD, BUDGET, Progress(), as_it_is)
    assert ends(ladder) == [("as it is", "does not fit"), ("checkpoint every 2nd layer", "fits")]
    first, last = (step.needs_bytes for step in ladder.steps)
    assert first == as_it_is.footprint_bytes
    assert last is not None
    assert last <= BUDGET < as_it_is.footprint_bytes


def test_measured_ladder_says_where_memory_ran_out(as_it_is: MemoryUse) -> None:
    tried: list[RunConfig] = []
    found = [
        replace(as_it_is, out_of_memory=REFUSED),
        as_it_is,
        replace(as_it_is, reserved_peak_bytes=MiB, device_peak_bytes=None),
    ]

    def measure(case: RunConfig) -> MemoryUse:
        tried.append(case)
        return found[len(tried) - 1]

    ladder = measured_ladder(training(), CARD, BUDGET, measure)
    assert ends(ladder) == [
        ("as it is", "out of memory"),
        ("checkpoint every 2nd layer", "does not fit"),
        ("checkpoint every layer", "fits"),
    ]
    assert ladder.kind == "measured"
    assert ladder.steps[0].detail == "in backward: aten.mm.default"
    assert ladder.steps[0].needs_bytes is None  # it got only so far
    policies = [case.training.checkpointing for case in tried]
    assert policies == ["none", "every-nth", "every-layer"]


def test_ladders_are_simulated_then_measured(
    monkeypatch: pytest.MonkeyPatch, as_it_is: MemoryUse
) -> None:
    monkeypatch.setattr(runs, "measure_once", lambda case, target: as_it_is)
    simulated, both = _ladders(as_it_is)
    assert [ladder.kind for ladder in simulated[0]] == ["simulated"]
    assert [ladder.kind for ladder in both[0]] == ["simulated", "measured"]
    assert both[0][1].ended_on is None
    assert both[1] == []


def test_a_failed_measurement_leaves_the_simulated_ladder(
    monkeypatch: pytest.MonkeyPatch, as_it_is: MemoryUse
) -> None:
    def fail(case: RunConfig, target: Target) -> MemoryUse:
        raise MeasureError("the child died")

    monkeypatch.setattr(runs, "measure_once", fail)
    *_, (ladders, problems) = _ladders(as_it_is)
    assert [ladder.kind for ladder in ladders] == ["simulated"]
    assert problems == ["ladder: the child died"]


def _ladders(as_it_is: MemoryUse) -> list[tuple[tuple[Ladder, ...], list[str]]]:
    target = Target(device="cuda", card=CARD, fitted=CARD)
    result = replace(planned_result(training()), simulated=as_it_is)
    found = profile_ladders(training(), target, result, Progress())
    return [(ladders, list(problems)) for ladders, problems in found]
