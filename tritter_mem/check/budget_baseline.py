"""Marked tests as cases of a baseline: each is named by its id."""

from __future__ import annotations

from collections.abc import Iterable

from tritter_mem.check.baseline import Baseline, Case
from tritter_mem.check.compare import Rules
from tritter_mem.check.outcome import Outcome
from tritter_mem.check.run import KINDS, Profiled, Task, outcomes_of
from tritter_mem.check.update import update
from tritter_mem.results import Result


def compared(result: Result, baseline: Baseline) -> Outcome:
    """Hold what a test needs against the baseline."""
    (outcome,) = outcomes_of([_profiled(result)], baseline, Rules())
    return outcome


def accepted(results: Iterable[Result], baseline: Baseline) -> tuple[Baseline, tuple[Outcome, ...]]:
    """The baseline with what tests need now, and what that changes; other entries stay."""
    new, outcomes = update(baseline, [_profiled(result) for result in results])
    return new or baseline, outcomes


def _profiled(result: Result) -> Profiled:
    """A test's record, of the kind of number that its verdict is about."""
    kinds = [kind for kind in KINDS if result.verdict and kind == result.verdict.basis]
    return Profiled(task=Task(case=Case(config=result.name), kinds=kinds), result=result)
