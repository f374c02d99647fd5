"""Seconds and tokens per second of a run's phases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

from tritter_mem.results import Estimate, Phase
from tritter_mem.trace.user_code import ModuleCase
from tritter_model.config import RunConfig

STEP = ("forward", "backward", "optimizer")


class Stopwatch:
    """Sums the seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start


def phase_tokens(run: RunConfig) -> dict[str, int]:
    """Tokens of all sequences that go through each phase; phases that take none are left out.

    The prompt's last token makes the first new token, so decode makes one less than all.
    """
    if run.mode == "training":
        return dict.fromkeys(("forward", "backward"), run.batch * run.context)
    prompt, decoded = run.context - run.new_tokens, run.new_tokens - 1
    return {"prefill": run.batch * prompt, "decode": run.batch * decoded}


def with_speed(
    estimate: Estimate, seconds: Mapping[str, float], work: RunConfig | ModuleCase
) -> Estimate:
    """Fill in the seconds of a run's phases and, of the bundled model, its tokens per second.

    Phases that a run did not come to have neither.
    """
    tokens = phase_tokens(work) if isinstance(work, RunConfig) else {}
    return replace(
        estimate,
        phases=tuple(
            _timed(phase, seconds[phase.name], tokens.get(phase.name)) for phase in estimate.phases
        ),
        tokens_per_second=_overall(seconds, work) if isinstance(work, RunConfig) else None,
    )


def _timed(phase: Phase, seconds: float, tokens: int | None) -> Phase:
    return replace(phase, seconds=seconds, tokens_per_second=tokens / seconds if tokens else None)


def _overall(seconds: Mapping[str, float], run: RunConfig) -> float | None:
    """What decode generates in a second, or what a whole step trains on."""
    needed = STEP if run.mode == "training" else ("decode",)
    if not set(needed) <= set(seconds):
        return None
    if run.mode == "training":
        return run.batch * run.context / sum(seconds[name] for name in STEP)
    decoded = phase_tokens(run)["decode"]
    return decoded / seconds["decode"] if decoded else None
