"""A job under memory pressure gives up comfort step by step instead of dying.

Sizes here are decimal gigabytes (1 GB is 10^9 bytes), as in the memory specification.
"""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tritter_mem.errors import UsageError
from tritter_mem.measure.climb import Climb, Outcome
from tritter_mem.measure.device import CudaDevice, Device
from tritter_mem.measure.inference_job import inference_job
from tritter_mem.measure.jobs import Job, T
from tritter_mem.measure.ladder import AS_IT_IS, Settings
from tritter_mem.measure.out_of_memory import LadderFailedError, is_out_of_memory
from tritter_mem.results import Ladder
from tritter_mem.units import GB

if TYPE_CHECKING:
    from torch import nn

_KEPT = 1000
_BODY_NOTE = (
    "managed_forward cured the forward pass only: a `with` body cannot run twice. To have the "
    "backward pass retried too, hand it over: manager.run(training_job(model, loss, batch))"
)


class MemoryManager:
    """Runs work within a memory budget: on running out of memory, again with less.

        manager = MemoryManager(budget_gb=15.0, headroom_gb=1.0)
        outcome = manager.run(training_job(model, loss, (ids, targets)))
        optimizer.step()

    `run` goes down the ladder of `ladder.rungs` one rung at a time. Between two tries nothing is
    kept of the failed one: frames of its traceback, partial gradients, cached segments; and
    PyTorch's random generators go back to where they were. So what comes out equals what a run
    started with the last settings gives. An error of another kind passes through untouched.

    The budget is what predictions and `can_allocate` are held against. No limit is set: PyTorch
    knows one a process and device (`torch.cuda.set_per_process_memory_fraction`), not one a
    manager.

    Managers share nothing, so they may run in threads and processes side by side, each a module of
    its own: one that runs already is refused. What they cannot keep apart is the process's: one
    allocator, whose memory another thread may take between a prediction and the run, and PyTorch's
    generators, which a cure in one thread sets back for all.

    Args:
        budget_gb: memory that may be used, in decimal GB.
        headroom_gb: the part of it to leave free.
        device: `cuda`, `cuda:1`, or a `SimulatedDevice`; default: the current CUDA device.

    Attributes:
        budget_gb: as given.
        headroom_gb: as given.
        history: ladders of the last jobs, the newest at the end.

    Raises:
        MeasureError: the device is CUDA's, and there is none.
        UsageError: budget and headroom leave nothing.
    """

    def __init__(
        self, budget_gb: float = 15.0, headroom_gb: float = 1.0, device: Device | str = "cuda"
    ) -> None:
        if not (math.isfinite(budget_gb) and 0 <= headroom_gb < budget_gb):
            raise UsageError(
                f"budget_gb, headroom_gb: found {budget_gb} and {headroom_gb}; allowed: a headroom "
                "of 0 or more, and a budget above it, in GB"
            )
        self.budget_gb, self.headroom_gb = budget_gb, headroom_gb
        self.history: deque[Ladder] = deque(maxlen=_KEPT)  # whose append is thread-safe
        self._device = CudaDevice(device) if isinstance(device, str) else device

    @property
    def limit_bytes(self) -> int:
        """The budget less the headroom."""
        return round((self.budget_gb - self.headroom_gb) * GB)

    def can_allocate(self, size_gb: float) -> bool:
        """Whether so much more is within the budget, its headroom left, and on the device at all.

        Another process may take the device's memory before the allocation comes.

        Args:
            size_gb: in decimal GB.

        Raises:
            UsageError: the size is none.
        """
        if not (math.isfinite(size_gb) and size_gb >= 0):
            raise UsageError(f"size_gb: found {size_gb}; allowed: a size in GB, 0 or more")
        now, size = self._device.read(), round(size_gb * GB)
        return now.allocated_bytes + size <= self.limit_bytes and now.holds(size)

    def clear_cache(self) -> None:
        """Collect garbage, then give what the allocator no longer needs back to the driver.

        In this order: tensors in reference cycles are live memory until they are collected.
        """
        gc.collect()
        self._device.empty_cache()

    def run(self, job: Job[T], start: Settings = AS_IT_IS) -> Outcome[T]:
        """Run a job, and on running out of memory again, with less and less.

        Where the job predicts what it needs, the first try is the first rung that is predicted to
        fit the budget; where none is, the last one.

        Args:
            job: any work, see `training_job`, `inference_job` and `Job`.
            start: what to give up from the start: the settings of the job before.

        Raises:
            LadderFailedError: memory ran out on every rung.
        """
        climb = Climb(self._device, job, self.limit_bytes)
        try:
            return climb.run(start)
        finally:
            self.history.append(climb.ladder)

    @contextmanager
    def managed_forward(
        self, model: nn.Module, *inputs: Any, window: int | None = None, **keywords: Any
    ) -> Iterator[Any]:
        """The output of a forward pass that was run within the memory there is.

            with manager.managed_forward(model, input_ids) as output:
                loss = compute_loss(output)

        A `with` body runs once: a context manager that yields again after an error, as the
        specification sketches it, is refused by Python. So the ladder is gone through before the
        body, for the forward pass alone, and the output is yielded once. With gradients on, it can
        clear the cache and checkpoint; without, cut the batch and, where `window` allows it,
        truncate. When the body itself runs out of memory, what is cached is cleared and the error
        goes on with a note: `run` retries whole steps.

        Args:
            model: any module.
            inputs: of its forward pass; the first has a row a sequence.
            window: last tokens that inference may be truncated to.
            keywords: of its forward pass.

        Raises:
            LadderFailedError: memory ran out on every rung.
        """
        try:  # job and output have no name here, which would keep them for the whole body
            yield self.run(inference_job(model, *inputs, window=window, **keywords)).value
        except Exception as error:
            if is_out_of_memory(error) and not isinstance(error, LadderFailedError):
                error.add_note(_BODY_NOTE)
                self.clear_cache()
            raise
