"""A session's results, in its main process: collected, compared, shown, written once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tritter_mem.errors import InputError, TritterMemError, missing_package

if TYPE_CHECKING:
    from tritter_mem.check.baseline import Baseline
    from tritter_mem.check.outcome import Outcome
    from tritter_mem.results import Result

_ATTRIBUTE = "memory_result"


def attach(report: pytest.TestReport, result: Result) -> None:
    """Lay a test's record into its report, in a form that xdist can send."""
    setattr(report, _ATTRIBUTE, json.dumps(result.to_dict()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the options name.

    Attributes:
        baseline: to compare with.
        update: whether to write it rather than to compare.
        report: where to write the results.
    """

    baseline: Path | None
    update: bool
    report: Path | None

    def read(self) -> Baseline | None:
        """The baseline: empty where it is to be made, None where none is named.

        Raises:
            pytest.UsageError: it cannot be read, a file not be written, or a package is
                missing; known before tests run.
        """
        if self.update and self.baseline is None:
            raise pytest.UsageError("--memory-update-baseline: only with --memory-baseline FILE")
        try:
            self._check_writable()
            return None if self.baseline is None else self._read(self.baseline)
        except TritterMemError as error:
            raise pytest.UsageError(*error.problems) from error
        except ModuleNotFoundError as error:
            if (words := missing_package(error)) is None:
                raise
            raise pytest.UsageError(words) from error

    def _check_writable(self) -> None:
        for path in filter(None, (self.report, self.baseline if self.update else None)):
            from tritter_mem.report.files import check_writable

            check_writable(path)

    def _read(self, path: Path) -> Baseline:
        from tritter_mem.check.baseline import Baseline
        from tritter_mem.check.files import read_baseline

        if path.exists():
            return read_baseline(path)
        if self.update:
            return Baseline()
        make = f"pytest --memory-baseline {path} --memory-update-baseline"
        raise InputError(f"{path}: no such baseline; make it: {make}")


class Session:
    """Takes the results of marked tests from their reports, wherever the tests ran.

    Args:
        files: what to write.
        baseline: as it is before the session; None where there is none.
    """

    def __init__(self, files: Files, baseline: Baseline | None) -> None:
        self._files = files
        self._baseline = baseline
        self._texts: dict[str, str] = {}
        self._passed: set[str] = set()
        self._results: list[Result] = []
        self._outcomes: dict[str, Outcome] = {}
        self._notes: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test came to; of one that is run again, the last."""
        text = getattr(report, _ATTRIBUTE, None)
        if text is not None:
            self._texts[report.nodeid] = text
            (self._passed.add if report.passed else self._passed.discard)(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compare with the baseline or make it anew, and write the report."""
        if not self._texts:
            return
        from tritter_mem.history import remember

        read = {nodeid: _read_result(text) for nodeid, text in sorted(self._texts.items())}
        self._results = list(read.values())
        remember(self._results)
        try:
            self._write_report()
            if self._files.update:
                self._accept([result for nodeid, result in read.items() if nodeid in self._passed])
            else:
                self._compare()
        except TritterMemError as error:
            self._notes += error.problems
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show a row for each marked test."""
        if not self._results:
            return
        from tritter_mem.check.budget_words import summary

        width = terminalreporter.config.get_terminal_writer().fullwidth
        terminalreporter.section("tritter-mem")
        for line in (*summary(self._results, self._outcomes, width), *self._notes):
            terminalreporter.write_line(line)

    def _write_report(self) -> None:
        from tritter_mem.report.files import write_text_atomically

        if self._files.report is not None:
            records = [result.to_dict() for result in self._results]
            write_text_atomically(self._files.report, json.dumps(records) + "\n")
            self._notes.append(f"{self._files.report}: {len(records)} results")

    def _compare(self) -> None:
        from tritter_mem.check.budget_baseline import compared

        if self._baseline is not None:
            self._outcomes = {r.name: compared(r, self._baseline) for r in self._results}

    def _accept(self, results: list[Result]) -> None:
        """Write the baseline with what passed; the entries of other tests stay as they are."""
        from tritter_mem.check.baseline import Baseline
        from tritter_mem.check.budget_baseline import accepted
        from tritter_mem.check.files import baseline_text
        from tritter_mem.report.files import write_text_atomically

        path, before = self._files.baseline, self._baseline or Baseline()
        if path is None:
            return
        new, outcomes = accepted(results, before)
        self._outcomes = {outcome.label: outcome for outcome in outcomes}
        write_text_atomically(path, baseline_text(new))
        self._notes.append(f"{path}: {len(outcomes)} of {len(new.entries)} entries made anew")


def _read_result(text: str) -> Result:
    from tritter_mem.measure.plain import from_plain
    from tritter_mem.results import Result

    return from_plain(Result, json.loads(text))
