"""A job under memory pressure gives up comfort step by step instead of dying.

Sizes here are decimal gigabytes (1 GB is 10^9 bytes), as in the memory specification.
"""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from tritter_mem.devices.cuda import cuda_device
from tritter_mem.devices.device import Device, DeviceMemory, RandomState
from tritter_mem.errors import UsageError
from tritter_mem.measure.out_of_memory import (
    LadderFailedError,
    first_sentences,
    is_out_of_memory,
    release_frames,
)
from tritter_mem.oom.components import live_components
from tritter_mem.oom.jobs import inference_job
from tritter_mem.oom.ladder import AS_IT_IS, CLEAR_CACHE, Job, Rung, Settings, T, rungs
from tritter_mem.results.run import Ladder, LadderEnd, LadderStep
from tritter_mem.units import GB, format_bytes

if TYPE_CHECKING:
    from torch import nn

_LARGEST = 3
_KEPT = 1000
_INSTEAD = "pass SimulatedDevice(capacity_bytes) to try the ladder on the CPU"
_BODY_NOTE = (
    "managed_forward cured the forward pass only: a `with` body cannot run twice. To have the "
    "backward pass retried too, hand it over: manager.run(training_job(model, loss, batch))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome(Generic[T]):
    """What a job came to.

    Attributes:
        value: what it returned.
        settings: what it ran with in the end; the next job may start there.
        ladder: the rungs that it went through.
    """

    value: T
    settings: Settings
    ladder: Ladder


class MemoryManager:
    """Runs work within a memory budget: on running out of memory, again with less.

        manager = MemoryManager(budget_gb=15.0, headroom_gb=1.0)
        outcome = manager.run(training_job(model, loss, (ids, targets)))
        optimizer.step()

    `run` goes down the ladder of `ladder.rungs` one rung at a time. Between two tries nothing is
    kept of the failed one: frames of its traceback, partial gradients, cached segments; and
    PyTorch's random generators go back to where they were. So what comes out equals what a run
    started with the last settings gives. An error of another kind passes through untouched.

    Predictions and `can_allocate` are compared with the budget. No limit is set: PyTorch
    knows one a process and device (`torch.cuda.set_per_process_memory_fraction`), not one a
    manager.

    Managers share nothing, so they may run in threads and processes side by side, each another
    module: one that runs already is refused. What they cannot keep apart is the process's: one
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
                f"budget_gb, headroom_gb: got {budget_gb} and {headroom_gb}, expected a headroom "
                "of 0 or more, and a budget above it, in GB"
            )
        self.budget_gb, self.headroom_gb = budget_gb, headroom_gb
        self.history: deque[Ladder] = deque(maxlen=_KEPT)  # whose append is thread-safe
        self._device = cuda_device(device, _INSTEAD) if isinstance(device, str) else device

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
            raise UsageError(f"size_gb: got {size_gb}, expected a size in GB, 0 or more")
        now, size = self._device.memory(), round(size_gb * GB)
        return now.allocated_bytes + size <= self.limit_bytes and now.holds(size)

    def clear_cache(self) -> None:
        """Collect garbage, then give what the allocator no longer needs back to the driver.

        In this order: tensors in reference cycles are live memory until they are collected.
        """
        gc.collect()
        self._device.empty_cache()

    def run(self, job: Job[T], start: Settings = AS_IT_IS) -> JobOutcome[T]:
        """Run a job, and on running out of memory again, with less and less.

        Where the job predicts what it needs, the first try is the first rung that is predicted to
        fit the budget; where none is, the last one.

        Args:
            job: any work, see `training_job`, `inference_job` and `Job`.
            start: what to give up from the start: the settings of the job before.

        Raises:
            LadderFailedError: memory ran out on every rung.
        """
        retries = Retries(self._device, job, self.limit_bytes)
        try:
            return retries.run(start)
        finally:
            self.history.append(retries.ladder)

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


class Retries(Generic[T]):
    """Runs one job, on one rung after another.

    Args:
        device: where it runs.
        job: the work.
        limit_bytes: what predictions are compared with.
    """

    def __init__(self, device: Device, job: Job[T], limit_bytes: int) -> None:
        self._device, self._job, self._limit_bytes = device, job, limit_bytes
        self._steps: list[LadderStep] = []
        self._refused: list[Rung] = []
        self._needs: dict[Settings, int] = {}
        self._memory = DeviceMemory(0, 0, 0)
        self._components: dict[str, int] = {}

    @property
    def ladder(self) -> Ladder:
        """The rungs so far."""
        return Ladder(
            kind=self._device.kind, budget_bytes=self._limit_bytes, steps=tuple(self._steps)
        )

    def run(self, start: Settings) -> JobOutcome[T]:
        """Go down the ladder.

        Args:
            start: what is given up from the start.

        Raises:
            LadderFailedError: memory ran out on every rung.
        """
        generators = self._device.random_state()
        for rung in self._to_try(start):
            if (outcome := self._tried(rung)) is not None:
                return outcome
            self._clean_up(generators)  # the error and its traceback are gone by now
        for rung in self._refused:
            self._note(rung, "refused")
        raise self._failure()

    def _tried(self, rung: Rung) -> JobOutcome[T] | None:
        """What one rung came to; None: memory ran out."""
        try:
            value = self._job.run(rung.settings)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._ran_out(rung, error)
            return None
        self._note(rung, "fits")
        return JobOutcome(value=value, settings=rung.settings, ladder=self.ladder)

    def _to_try(self, start: Settings) -> list[Rung]:
        found = list(rungs(self._job.offers, start))
        self._refused = [rung for rung in found if rung.refused]
        allowed = [rung for rung in found if not rung.refused]
        return allowed if self._job.predict is None else list(self._promising(allowed))

    def _promising(self, allowed: list[Rung]) -> Iterator[Rung]:
        """From the first rung on that is predicted to fit; the last where no rung is."""
        fits = False
        for rung in allowed:
            fits = fits or self._predicted(rung.settings) <= self._limit_bytes
            if fits or rung is allowed[-1]:
                yield rung
            elif rung.name != CLEAR_CACHE:  # which changes nothing that is predicted
                self._note(rung, "does not fit")

    def _predicted(self, settings: Settings) -> int:
        if settings not in self._needs and self._job.predict is not None:
            self._needs[settings] = self._job.predict(settings)
        return self._needs[settings]

    def _ran_out(self, rung: Rung, error: Exception) -> None:
        """Read how memory stands while all is still there, then release it."""
        self._memory, self._components = self._device.memory(), live_components(self._device)
        self._note(rung, "out of memory", self._memory, first_sentences(error))
        release_frames(error)

    def _clean_up(self, generators: RandomState) -> None:
        self._device.synchronize()  # or the failed try might still write into what is put back
        self._job.undo()
        gc.collect()
        self._device.empty_cache()
        self._device.set_random_state(generators)

    def _note(
        self, rung: Rung, ended: LadderEnd, now: DeviceMemory | None = None, detail: str = ""
    ) -> None:
        self._steps.append(
            LadderStep(
                rung=rung.name,
                settings=rung.settings.given_up(),
                ended=ended,
                needs_bytes=self._needs.get(rung.settings),
                allocated_bytes=now.allocated_bytes if now else None,
                reserved_bytes=now.reserved_bytes if now else None,
                detail=detail,
                changes_result=rung.changes_result,
            )
        )

    def _failure(self) -> LadderFailedError:
        return LadderFailedError(
            *self._last_try(),
            f"largest of what was alive: {self._largest() or 'nothing'}",
            *(f"refused in training, unless asked for: {rung.name}" for rung in self._refused),
            *self._job.advise(self._limit_bytes),
            ladder=self.ladder,
            components=self._components,
        )

    def _last_try(self) -> Iterator[str]:
        """Where memory ran out, and how it stood the last time."""
        tried = [step for step in self._steps if step.ended == "out of memory"]
        now = self._memory
        yield f"out of memory on every rung: {', '.join(step.rung for step in tried)}"
        yield f"the last try: {tried[-1].detail}"
        yield (
            f"then: {format_bytes(now.allocated_bytes)} allocated, "
            f"{format_bytes(now.reserved_bytes)} reserved, {format_bytes(now.free_bytes)} left"
        )

    def _largest(self) -> str:
        largest = sorted(self._components.items(), key=lambda part: -part[1])[:_LARGEST]
        return ", ".join(f"{name.replace('_', ' ')} {format_bytes(n)}" for name, n in largest)
