"""What counts as an out-of-memory error, and what a failed try leaves behind in other code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch

from tests.oom.nets import ROOMY, without_automatic_collection
from tritter_mem import MemoryManager
from tritter_mem.measure.out_of_memory import (
    LadderFailedError,
    first_sentences,
    is_out_of_memory,
)
from tritter_mem.oom.ladder import Job, Offers, Settings
from tritter_mem.oom.simulated_device import SimulatedDevice
from tritter_mem.units import MiB


def refused() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


def manager(device: SimulatedDevice) -> MemoryManager:
    return MemoryManager(budget_gb=2, headroom_gb=0, device=device)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 1.00 GiB",
        "CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    ],
)
def test_what_libraries_say_counts(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(ValueError(text))


@pytest.mark.parametrize(
    "text",
    [
        "Triton Error [CUDA]: invalid argument",
        "out of resource: shared memory, Required: 300000, Hardware limit: 232448",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED",
    ],
)
def test_what_less_memory_does_not_cure_does_not_count(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))


def test_a_group_counts_where_all_in_it_do() -> None:
    alone, mixed = [refused()], [refused(), ValueError("wrong")]
    assert is_out_of_memory(ExceptionGroup("tasks", [*alone, ExceptionGroup("more", alone)]))
    assert not is_out_of_memory(ExceptionGroup("tasks", mixed))
    assert first_sentences(ExceptionGroup("tasks", alone)) == first_sentences(alone[0])


async def _in_tasks(run: Callable[[], object]) -> None:
    async def task() -> None:
        held = torch.empty(60 * MiB, dtype=torch.uint8)
        await asyncio.sleep(0)
        run()
        del held

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(task())
        tasks.create_task(task())


def test_tasks_that_run_out_are_cured_and_keep_nothing() -> None:
    """Their tensors are held by the frames of each error in the group."""
    bases: list[int] = []
    with SimulatedDevice(ROOMY) as device, without_automatic_collection():

        def run(settings: Settings) -> str:
            bases.append(device.memory().allocated_bytes)
            if settings.micro_batch is None:
                asyncio.run(_in_tasks(lambda: torch.empty(2 * ROOMY, dtype=torch.uint8)))
            return "done"

        outcome = manager(device).run(Job(run=run, offers=Offers(batch=2)))
    assert outcome.value == "done"
    assert bases == [0, 0, 0]


def test_a_ladder_inside_that_failed_is_cured_by_the_one_around_it() -> None:
    with SimulatedDevice(ROOMY) as device:

        def inside(settings: Settings) -> str:
            if settings.micro_batch != 1:
                raise refused()
            return "done"

        def run(settings: Settings) -> str:
            job = Job(run=lambda _: inside(settings), offers=Offers())
            return manager(device).run(job).value

        outcome = manager(device).run(Job(run=run, offers=Offers(batch=4)))
    assert outcome.value == "done"
    assert outcome.settings == Settings(micro_batch=1)


def test_a_ladder_inside_fails_the_one_around_it_with_its_own_words() -> None:
    def fail(_: Settings) -> None:
        raise refused()

    with SimulatedDevice(ROOMY) as device:
        inner = Job(run=fail, offers=Offers())
        outer = Job(run=lambda _: manager(device).run(inner), offers=Offers())
        with pytest.raises(LadderFailedError) as caught:
            manager(device).run(outer)
    assert "the last try: out of memory on every rung" in caught.value.problems[1]
