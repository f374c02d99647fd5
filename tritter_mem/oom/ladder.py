"""The ladder: what a job can give up, rung by rung, so that it needs less memory; and the job.

Rungs are settings, each with all that the rungs before it gave up. The order is the
specification's: clear the cache, checkpoint more often, halve the batch, truncate the context. The
first three leave the result as it is. Nothing here runs anything, and nothing needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Generic, TypeVar

from tritter_mem.errors import UsageError

EVERY_LAYER = (4, 2, 1)
"""Checkpoint every 4th layer, every 2nd, each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a job runs.

    Attributes:
        checkpoint_every: recompute every n-th layer in the backward pass, beside what the job
            recomputes anyway; None: no others.
        micro_batch: sequences that run at a time; None: all.
        window: last tokens of each sequence that are seen; None: all.
    """

    checkpoint_every: int | None = None
    micro_batch: int | None = None
    window: int | None = None

    def given_up(self) -> dict[str, Any]:
        """The settings that are not as the job stands, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


AS_IT_IS = Settings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """What a job can give up.

    Attributes:
        training: whether it is training.
        checkpoint_every: how often it can checkpoint layers, from seldom to often.
        batch: its sequences; 1: there is nothing to halve.
        window: tokens that its context can be truncated to; None: it cannot.
        truncate_training: truncate in training too, where that changes what is learned.
    """

    training: bool = False
    checkpoint_every: tuple[int, ...] = ()
    batch: int = 1
    window: int | None = None
    truncate_training: bool = False

    def __post_init__(self) -> None:
        found = {"batch": self.batch, "window": self.window}
        problems = [
            f"{name}: got {value}, expected 1 or more"
            for name, value in found.items()
            if value is not None and value < 1
        ]
        often = (*self.checkpoint_every, 0)
        if any(later >= n for n, later in pairwise(often)):
            problems.append(
                f"checkpoint_every: got {self.checkpoint_every}, expected whole numbers above 0, "
                "the largest first, such as (4, 2, 1)"
            )
        if problems:
            raise UsageError(*problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One rung: what is given up beside the rungs before, and the settings that come of it.

    Attributes:
        name: in words.
        settings: all that is given up so far.
        changes_result: whether the result is another one than without it.
        refused: whether the job may not take it.
    """

    name: str
    settings: Settings
    changes_result: bool = False
    refused: bool = False


CLEAR_CACHE = "clear cache"


def rungs(offers: Offers, start: Settings = AS_IT_IS) -> Iterator[Rung]:
    """The rungs of a job in order, the first as it starts; no settings but the first's come twice.

    Args:
        offers: what the job can give up.
        start: what is given up already.
    """
    settings = start
    yield Rung(name="as it is" if start == AS_IT_IS else "as before", settings=settings)
    yield Rung(name=CLEAR_CACHE, settings=settings)
    for n in offers.checkpoint_every:
        if settings.checkpoint_every is None or n < settings.checkpoint_every:
            settings = replace(settings, checkpoint_every=n)
            yield Rung(name=f"checkpoint {_every(n)} layer", settings=settings)
    at_once = min(settings.micro_batch or offers.batch, offers.batch)
    while at_once > 1:
        at_once = -(-at_once // 2)
        settings = replace(settings, micro_batch=at_once)
        yield Rung(name=f"{at_once} of {offers.batch} sequences at a time", settings=settings)
    if offers.window is not None and settings.window is None:
        yield Rung(
            name=f"truncate to the last {offers.window} tokens",
            settings=replace(settings, window=offers.window),
            changes_result=True,
            refused=offers.training and not offers.truncate_training,
        )


def _every(n: int) -> str:
    return {1: "every", 2: "every 2nd", 3: "every 3rd"}.get(n, f"every {n}th")


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
