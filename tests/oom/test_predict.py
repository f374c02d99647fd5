"""What a job is predicted to need, and what the planner would change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.oom.nets import BATCH, ROOMY, TOKENS, WIDTH, Net, count, loss, make
from tritter_mem import MemoryManager
from tritter_mem.config.loading import load_profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.oom.jobs import advice, predictor, training_job
from tritter_mem.oom.ladder import AS_IT_IS, Job, Settings
from tritter_mem.oom.simulated_device import SimulatedDevice
from tritter_mem.units import GB, GiB

CARD = find_gpu("rtx-5080")
BUILT: list[str] = []


def build(device: torch.device) -> Job[Any]:
    BUILT.append(device.type)
    with device:
        model = Net()
        inputs = torch.randn(BATCH, TOKENS, WIDTH)
        targets = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
    return training_job(model, loss, (inputs, targets))


def test_less_is_predicted_for_settings_that_give_something_up() -> None:
    predict = predictor(build, CARD)
    rungs = [AS_IT_IS, Settings(checkpoint_every=1), Settings(checkpoint_every=1, micro_batch=1)]
    needs = [predict(settings) for settings in rungs]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] > needs[-1] > CARD.context_bytes


def test_a_default_device_decides_nothing_of_a_prediction() -> None:
    """Not even of the count of targets, by which the means of pieces are weighed."""

    def counted(device: torch.device) -> Job[Tensor]:
        with device:
            model, batch = make()
        return training_job(model, loss, batch, count)

    pieces = Settings(micro_batch=1)
    wanted = predictor(counted, CARD)(pieces)
    torch.set_default_device("cpu")
    try:
        assert predictor(counted, CARD)(pieces) == wanted
    finally:
        torch.set_default_device(None)


def test_each_settings_are_simulated_once_and_on_meta() -> None:
    predict = predictor(build, CARD)
    BUILT.clear()
    assert predict(AS_IT_IS) == predict(AS_IT_IS)
    assert BUILT == ["meta"]


def test_a_manager_starts_on_the_rung_that_is_predicted_to_fit() -> None:
    predict = predictor(build, CARD)
    least = Settings(checkpoint_every=1)
    tried: list[Settings] = []
    with SimulatedDevice(ROOMY) as device:
        job = build(torch.device("cpu"))

        def run(settings: Settings) -> Tensor:
            tried.append(settings)
            found: Tensor = job.run(settings)
            return found

        manager = MemoryManager(predict(least) / GB, 0, device)
        outcome = manager.run(replace(job, run=run, predict=predict))
    assert tried == [outcome.settings]
    assert predict(outcome.settings) <= manager.limit_bytes < predict(AS_IT_IS)
    assert outcome.ladder.steps[0].ended == "does not fit"


def test_advice_is_the_planners_for_the_budget() -> None:
    advise = advice(load_profile("7b", {"workload.context": 131072}))
    lines = advise(12 * GiB)
    assert lines
    assert all(line.startswith("plan suggests: ") and ", saves " in line for line in lines)
    assert advise(4096 * GiB) == []
