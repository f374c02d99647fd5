"""Devices under a manager: what is counted, and where a simulated one refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.oom.nets import ROOMY, count, loss, make
from tritter_mem import MemoryManager
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.devices.cuda import CudaDevice, cuda_device
from tritter_mem.devices.device import DeviceMemory
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.oom.components import known_components, live_components
from tritter_mem.oom.jobs import training_job
from tritter_mem.oom.ladder import AS_IT_IS
from tritter_mem.oom.simulated_device import SimulatedDevice
from tritter_mem.simulation.playback import find_out_of_memory
from tritter_mem.units import MiB

META = torch.device("meta")  # where no other test's modules live


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
    predicted = find_out_of_memory(free.log, AllocatorSettings(), capacity, 0)
    assert predicted is not None
    with Watched(capacity) as device, pytest.raises(torch.OutOfMemoryError) as caught:
        step()
    at, operator, nbytes = device.asked
    event = free.log.event(at)
    assert (event.operator, event.bytes) == (operator, nbytes)
    assert (predicted.operator, predicted.requested_bytes) == (operator, nbytes)
    assert f"({predicted.operator})" in str(caught.value)


def test_weights_embeddings_gradients_and_optimizer_state_are_told_apart() -> None:
    with META:
        table, layer = nn.Embedding(8, 4), nn.Linear(4, 2)
        layer.register_buffer("seen", torch.zeros(3))
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer = torch.optim.SGD([layer.weight], lr=0.1, momentum=0.9)
    optimizer.step()
    found = known_components(META)
    floats = {"embeddings": 8 * 4, "weights": 4 * 2 + 2 + 3, "gradients": 8, "optimizer_state": 8}
    assert found == {component: 4 * number for component, number in floats.items()}
    del table


def test_a_tied_weight_counts_once_as_an_embedding() -> None:
    with META:
        head, table = nn.Linear(4, 8, bias=False), nn.Embedding(8, 4)
    head.weight = table.weight
    assert known_components(META) == {"embeddings": 8 * 4 * 4}


def test_what_has_no_storage_of_its_own_does_not_count() -> None:
    """A diagnosis that fails would take the place of the error that it is about."""
    lazy = nn.LazyLinear(4, device=META)
    unmade = nn.Linear.__new__(nn.Linear)
    sparse = nn.Module()
    table = torch.sparse_coo_tensor(size=(3, 3), device=META, check_invariants=False)
    sparse.register_buffer("table", table)
    with FakeTensorMode(), META:
        fake = nn.Linear(8, 8)
    assert known_components(META) == {}
    del lazy, unmade, sparse, table, fake


def test_room_is_in_the_cache_and_on_the_device() -> None:
    reading = DeviceMemory(allocated_bytes=1, reserved_bytes=3, free_bytes=4)
    assert reading.holds(6)
    assert not reading.holds(7)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_way_out_is_named() -> None:
    with pytest.raises(MeasureError, match="no CUDA device was found: hand over SimulatedDevice"):
        MemoryManager()


@pytest.mark.parametrize("name", ["cpu", "meta", "cuda:", "cudda", "gpu"])
def test_what_is_no_cuda_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"device: found '{name}'; allowed: cuda, cuda:1"):
        cuda_device(name, "")


@pytest.mark.gpu
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(MeasureError, match="device: found cuda:99; there is cuda:0"):
        cuda_device("cuda:99", "")


@pytest.mark.gpu
def test_cuda_device_reads_what_pytorch_holds() -> None:
    device = CudaDevice(torch.cuda.current_device())
    before = device.memory()
    held = torch.empty(30 * MiB, dtype=torch.uint8, device="cuda")
    now = device.memory()
    assert now.allocated_bytes - before.allocated_bytes == held.nbytes
    assert live_components(device)["activations"] >= held.nbytes
    del held
    device.empty_cache()
    assert device.memory().reserved_bytes <= now.reserved_bytes - 30 * MiB


@pytest.mark.gpu
def test_generators_of_the_cpu_and_of_cuda_go_back() -> None:
    device = CudaDevice(torch.cuda.current_device())
    state = device.random_state()
    torch.rand(3), torch.rand(3, device="cuda")
    assert not any(map(torch.equal, device.random_state(), state))
    device.set_random_state(state)
    assert all(map(torch.equal, device.random_state(), state))


@pytest.mark.gpu
@pytest.mark.computes
def test_after_going_back_the_same_numbers_are_drawn() -> None:
    device = CudaDevice(torch.cuda.current_device())
    state = device.random_state()
    drawn = torch.rand(3), torch.rand(3, device="cuda")
    device.set_random_state(state)
    assert torch.equal(torch.rand(3), drawn[0])
    assert torch.equal(torch.rand(3, device="cuda"), drawn[1])
