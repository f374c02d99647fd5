"""A CUDA device: how it is named, and what is read of it."""

from __future__ import annotations

import pytest
import torch

from tritter_mem import MemoryManager
from tritter_mem.devices.cuda import CudaDevice, cuda_device
from tritter_mem.devices.device import DeviceMemory
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.oom.components import live_components
from tritter_mem.units import MiB


def test_room_is_in_the_cache_and_on_the_device() -> None:
    reading = DeviceMemory(allocated_bytes=1, reserved_bytes=3, free_bytes=4)
    assert reading.holds(6)
    assert not reading.holds(7)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_way_out_is_named() -> None:
    with pytest.raises(MeasureError, match="no CUDA device was found: pass SimulatedDevice"):
        MemoryManager()


@pytest.mark.parametrize("name", ["cpu", "meta", "cuda:", "cudda", "gpu"])
def test_what_is_no_cuda_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"device: got '{name}', expected cuda, cuda:1"):
        cuda_device(name, "")


@pytest.mark.gpu
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(MeasureError, match="device: got cuda:99, but there is cuda:0"):
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
