"""An answer in the making: what is found is kept, whatever goes wrong after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tritter_mem.config.gpus import AUTO, GpuCard, find_gpu
from tritter_mem.errors import MeasureError
from tritter_mem.measure import runs
from tritter_mem.measure.target import Asked, Target, locate
from tritter_mem.measure.work import Work
from tritter_mem.results import KINDS, Result

INTERRUPTED = "interrupted"


class MeasurementFailedError(MeasureError):
    """A measurement failed; `result` is the record with all that is there, and the reason."""

    def __init__(self, *problems: str, result: Result) -> None:
        super().__init__(*problems)
        self.result = result


class ProfileInterrupted(KeyboardInterrupt):
    """Ctrl-C; `result` is the record with what was finished before."""

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where to measure, or why nowhere; and the cards that the answer is about.

    Attributes:
        target: None where nothing can be measured.
        reason: why not.
        fitted: the card to fit.
        simulated: the card to plan and simulate for: the one that measures, where one does.
    """

    target: Target | None
    reason: str | None
    fitted: GpuCard
    simulated: GpuCard


def find_where(asked: Asked, gpu: str, allocator_conf: str, budget_bytes: int | None) -> Where:
    """Look for the device that was asked for.

    Args:
        asked: how to measure.
        gpu: name of the card to fit; `auto`: the one that measures, else the one present.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        budget_bytes: memory that may be used, where it was named: the cap of a run on CUDA.

    Raises:
        ConfigError: there is no such card.
        MeasureError: the card is `auto`, and there is none.
    """
    try:
        card = locate(asked)
    except MeasureError as error:
        fitted = find_gpu(gpu)
        return Where(target=None, reason=str(error), fitted=fitted, simulated=fitted)
    return where_on(card, asked, gpu, allocator_conf, budget_bytes)


def where_on(
    card: GpuCard | None, asked: Asked, gpu: str, allocator_conf: str, budget_bytes: int | None
) -> Where:
    """The same where the device was found already.

    Args:
        card: what `locate` found; None: the CPU.
        asked: how to measure.
        gpu: name of the card to fit; `auto`: the one that measures, else the one present.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        budget_bytes: memory that may be used, where it was named: the cap of a run on CUDA.

    Raises:
        ConfigError: there is no card of the name `gpu`.
    """
    fitted = card if card is not None and gpu == AUTO else find_gpu(gpu)
    target = Target(card=card, index=asked.index, asked=asked, allocator_conf=allocator_conf,
                    budget_bytes=None if card is None else budget_bytes)  # fmt: skip
    simulated = target.simulated_card(fitted)
    return Where(target=target, reason=None, fitted=fitted, simulated=simulated)


class Answer:
    """A record that grows.

    Args:
        result: the record so far.
        judged: adds verdict and differences to a record.

    Attributes:
        result: the record so far.
        problems: what ends the command with an error, though the record stands.
    """

    def __init__(self, result: Result, judged: Callable[[Result], Result]) -> None:
        self.result = result
        self.problems: list[str] = []
        self._judged = judged

    def add(self, **found: Any) -> None:
        """Replace fields of the record."""
        self.result = replace(self.result, **found)

    def fail(self, problems: Iterable[str]) -> None:
        """Note what went wrong."""
        self.problems += problems

    def measure(self, work: Work, where: Where, asked: Asked) -> None:
        """Add what is measured, or why nothing is."""
        if where.target is None:
            self.add(measured_reason=where.reason)
            if asked.must:
                self.fail([_not_here(asked, where.reason or "")])
            return
        try:
            self.add(measured=runs.measure(work, where.target))
        except runs.PartlyMeasuredError as error:
            self.add(measured=error.estimate)
            self.fail(error.problems)
        except MeasureError as error:
            self.add(measured_reason=str(error))
            self.fail(error.problems)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Hand what is finished over to whoever catches an interruption.

        Raises:
            ProfileInterrupted: in place of KeyboardInterrupt.
        """
        try:
            yield
        except KeyboardInterrupt:
            missing = {
                f"{kind}_reason": INTERRUPTED
                for kind in KINDS
                if getattr(self.result, kind) is None
                and getattr(self.result, f"{kind}_reason") is None
            }
            self.add(**missing)
            raise ProfileInterrupted(self._judged(self.result)) from None

    def finished(self) -> Result:
        """The record with its verdict.

        Raises:
            MeasurementFailedError: something went wrong on the way.
        """
        result = self._judged(self.result)
        if self.problems:
            raise MeasurementFailedError(*self.problems, result=result)
        return result


def _not_here(asked: Asked, reason: str) -> str:
    if asked.device == "auto":
        return f"snapshot: {reason}"
    return f"device {asked.device}: {reason}; use --device cpu, or none to plan only"
