"""One job on its way down the ladder: try, clean up after the failure, try with less."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from tritter_mem.measure.device import Device, RandomState, Reading
from tritter_mem.measure.jobs import Job, T
from tritter_mem.measure.ladder import CLEAR_CACHE, Rung, Settings, rungs
from tritter_mem.measure.out_of_memory import LadderFailedError, is_out_of_memory, let_go, said
from tritter_mem.results import Ladder, LadderEnd, LadderStep
from tritter_mem.units import format_bytes

_LARGEST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[T]):
    """What a job came to.

    Attributes:
        value: what it returned.
        settings: what it ran with in the end; the next job may start there.
        ladder: the rungs that it went through.
    """

    value: T
    settings: Settings
    ladder: Ladder


class Climb(Generic[T]):
    """Runs one job, once.

    Args:
        device: where it runs.
        job: the work.
        limit_bytes: what predictions are held against.
    """

    def __init__(self, device: Device, job: Job[T], limit_bytes: int) -> None:
        self._device, self._job, self._limit_bytes = device, job, limit_bytes
        self._steps: list[LadderStep] = []
        self._refused: list[Rung] = []
        self._needs: dict[Settings, int] = {}
        self._reading = Reading(0, 0, 0)
        self._components: dict[str, int] = {}

    @property
    def ladder(self) -> Ladder:
        """The rungs so far."""
        return Ladder(
            kind=self._device.kind, budget_bytes=self._limit_bytes, steps=tuple(self._steps)
        )

    def run(self, start: Settings) -> Outcome[T]:
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

    def _tried(self, rung: Rung) -> Outcome[T] | None:
        """What one rung came to; None: memory ran out."""
        try:
            value = self._job.run(rung.settings)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._ran_out(rung, error)
            return None
        self._note(rung, "fits")
        return Outcome(value=value, settings=rung.settings, ladder=self.ladder)

    def _to_try(self, start: Settings) -> list[Rung]:
        found = list(rungs(self._job.offers, start))
        self._refused = [rung for rung in found if rung.refused]
        allowed = [rung for rung in found if not rung.refused]
        return allowed if self._job.predict is None else list(self._promising(allowed))

    def _promising(self, allowed: list[Rung]) -> Iterator[Rung]:
        """From the first rung on that is predicted to fit; the last where none is."""
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
        """Read how things stand while all is still there, then let go of it."""
        self._reading, self._components = self._device.read(), self._device.components()
        self._note(rung, "out of memory", self._reading, said(error))
        let_go(error)

    def _clean_up(self, generators: RandomState) -> None:
        self._device.synchronize()  # or the failed try might still write into what is put back
        self._job.undo()
        gc.collect()
        self._device.empty_cache()
        self._device.set_random_state(generators)

    def _note(
        self, rung: Rung, ended: LadderEnd, now: Reading | None = None, detail: str = ""
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
        now = self._reading
        yield f"out of memory on every rung: {', '.join(step.rung for step in tried)}"
        yield f"the last try: {tried[-1].detail}"
        yield (
            f"then: {format_bytes(now.allocated_bytes)} allocated, "
            f"{format_bytes(now.reserved_bytes)} reserved, {format_bytes(now.free_bytes)} left"
        )

    def _largest(self) -> str:
        largest = sorted(self._components.items(), key=lambda part: -part[1])[:_LARGEST]
        return ", ".join(f"{name.replace('_', ' ')} {format_bytes(n)}" for name, n in largest)
