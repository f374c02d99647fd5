"""A marked test on its way: its mark read, its need found, held against budget and baseline."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

import pytest

from tritter_mem.check.budget_baseline import compared
from tritter_mem.check.budget_mark import NAME, MemoryBudget, read_mark
from tritter_mem.check.budget_result import following, result_of, why_not_measured
from tritter_mem.check.budget_words import against_baseline, over_budget
from tritter_mem.errors import TritterMemError
from tritter_mem.results import Result

if TYPE_CHECKING:
    from tritter_mem.check.baseline import Baseline


@dataclass(slots=True, kw_only=True)
class Budgeted:
    """A test with the mark.

    Attributes:
        name: the test's id.
        asked: the mark, read.
        result: what it needs; None until the body of a test that is about it is done.
    """

    name: str
    asked: MemoryBudget
    result: Result | None = None

    @contextmanager
    def around_body(self, baseline: Baseline | None) -> Generator[None]:
        """Enter around the test's body, which runs only where what the mark names fits."""
        if self.result is not None:
            self._hold(self.result, baseline)
            yield
            return
        _forget_last_failure()
        with following(self.asked) as result:
            yield
        self.result = _named(self.name, result())
        self._hold(self.result, baseline)

    def _hold(self, result: Result, baseline: Baseline | None) -> None:
        if result.verdict is not None and not result.verdict.fits:
            _fail(over_budget(result, result.verdict))
        if baseline is not None:
            outcome = compared(result, baseline)
            if outcome.exit_code:
                _fail(against_baseline(outcome))


def _forget_last_failure() -> None:
    """Of another test: pytest keeps it for debuggers, and with it all that its frames hold.

    It forgets it itself before the next body, but after the peak of that has begun.
    """
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        vars(sys).pop(name, None)


def prepare(item: pytest.Item) -> Budgeted:
    """Read a test's mark and, where it is not about the test's own body, find what is needed.

    A mark that is wrong, and what cannot be simulated or measured, ends the test with an error;
    where a GPU is asked for and there is none, the test is skipped.
    """
    mark = _the_mark(item)
    name = _test_id(item)
    try:
        with chdir(item.config.rootpath):
            asked = read_mark(mark.args, mark.kwargs)
            if reason := why_not_measured(asked):
                pytest.skip(f"{NAME}: {reason}")
            result = None if asked.is_of_body else _named(name, result_of(asked))
    except TritterMemError as error:
        _fail(*error.problems)
    return Budgeted(name=name, asked=asked, result=result)


def _the_mark(item: pytest.Item) -> pytest.Mark:
    """The closest mark: a test's own comes before its class's and module's."""
    (closest, mark), *others = item.iter_markers_with_node(NAME)
    if any(node is closest for node, _ in others):
        _fail("found several on one test; allowed: one; write a test for each")
    return mark


def _test_id(item: pytest.Item) -> str:
    """The test's id, without the groups that xdist may add under `--dist loadgroup`."""
    marks = item.iter_markers("xdist_group")
    groups = {str(mark.args[0] if mark.args else mark.kwargs.get("name")) for mark in marks}
    return item.nodeid.removesuffix(f"@{'_'.join(sorted(groups))}") if groups else item.nodeid


def _named(name: str, result: Result) -> Result:
    return replace(result, profile={**result.profile, "name": name})


def _fail(*problems: str) -> NoReturn:
    """End the test with a message instead of a traceback: nothing in its code is wrong."""
    lines = (f"{NAME}: {problem}" for problem in problems)
    raise pytest.fail.Exception("\n".join(lines), pytrace=False) from None
