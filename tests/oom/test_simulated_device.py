"""Where a simulated device refuses, and what it counts."""

from __future__ import annotations

import pytest
import torch

from tests.oom.nets import ROOMY, count, loss, make
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.oom.jobs import training_job
from tritter_mem.oom.ladder import AS_IT_IS
from tritter_mem.oom.simulated_device import SimulatedDevice
from tritter_mem.simulation.playback import Limit, find_out_of_memory


class Watched(SimulatedDevice):
    """Remembers the last allocation that it was asked for."""

    asked = (0, "", 0)

    def _came(self, nbytes: int, operator: str) -> int:
        self.asked = (len(self.log), operator, nbytes)
        return super()._came(nbytes, operator)


def step() -> None:
    model, batch = make()
    training_job(model, loss, batch, count).run(AS_IT_IS)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_memory_runs_out_at_the_very_allocation_that_is_predicted(share: float) -> None:
    with SimulatedDevice(ROOMY) as free:
        step()
    capacity = round(share * free.memory().reserved_bytes)
    predicted = find_out_of_memory(free.log, AllocatorSettings(), Limit(capacity, 0))
    assert predicted is not None
    with Watched(capacity) as device, pytest.raises(torch.OutOfMemoryError) as caught:
        step()
    at, operator, nbytes = device.asked
    event = free.log.event(at)
    assert (event.operator, event.bytes) == (operator, nbytes)
    assert (predicted.operator, predicted.requested_bytes) == (operator, nbytes)
    assert f"({predicted.operator})" in str(caught.value)
