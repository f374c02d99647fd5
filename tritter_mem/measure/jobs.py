"""What a manager runs: any function of settings, and what it can give up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tritter_mem.measure.ladder import Offers, Settings

T = TypeVar("T")


def _nothing() -> None:
    """Nothing to undo."""


def _no_advice(budget_bytes: int) -> Sequence[str]:
    """Nothing is known."""
    del budget_bytes
    return ()


@dataclass(frozen=True, kw_only=True)
class Job(Generic[T]):
    """Work that a manager runs, and runs again with other settings when memory runs out.

    Attributes:
        run: does all of the work under some settings. It is called again from the start, so until
            it succeeds it must change nothing that `undo` does not put back.
        offers: what it can give up; `run` must heed all of that.
        undo: puts back what a failed run changed, such as half of the gradients.
        predict: bytes that the device must hold for a run, its context included.
        advise: for a budget in bytes, what else would help, one line each.
    """

    run: Callable[[Settings], T]
    offers: Offers
    undo: Callable[[], None] = _nothing
    predict: Callable[[Settings], int] | None = None
    advise: Callable[[int], Sequence[str]] = _no_advice
