"""The pytest plugin: `memory_budget`, `memory_tracker`, `--memory-baseline`, `--memory-report`.

pytest loads this module in every session of an environment that has the tool, so it imports nothing
until a test or an option asks for it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from tritter_mem.errors import InputError, TritterMemError, UsageError

if TYPE_CHECKING:
    from tritter_mem.check.budget_mark import MemoryBudget
    from tritter_mem.measure.tracker import MemoryTracker
    from tritter_mem.results.baseline import Baseline
    from tritter_mem.results.check import CaseOutcome
    from tritter_mem.results.run import Result

MARK = "memory_budget"
_MARKER = (
    f"{MARK}(budget, *, profile=None, module=None, rehearse=False, ...): the test fails where the "
    "profile, the third-party code or, without either, its own body needs more memory than the "
    "budget"
)
_MARKED: pytest.StashKey[MarkedTest] = pytest.StashKey()
_BASELINE: pytest.StashKey[Baseline | None] = pytest.StashKey()
SESSION = "STANDIN_SESSION"
"""Names the folder of the rehearsal that this process is part of."""
_ATTRIBUTE = "memory_result"
"""Of a test's report: its record, in a form that xdist can send."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("tritter-mem", "GPU memory (tritter-mem)")
    group.addoption(
        "--memory-baseline",
        metavar="FILE",
        type=Path,
        help="Compare the peak of each test that is marked memory_budget with this baseline.",
    )
    group.addoption(
        "--memory-update-baseline",
        action="store_true",
        help="Write the peaks of the tests that pass into --memory-baseline instead.",
    )
    group.addoption(
        "--memory-report",
        metavar="FILE",
        type=Path,
        help="Write the results of the marked tests as JSON, for `tritter-mem report`.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, read the baseline, and collect results in the session's main process."""
    config.addinivalue_line("markers", _MARKER)

    files = Files(
        baseline=config.getoption("memory_baseline"),
        update=config.getoption("memory_update_baseline"),
        report=config.getoption("memory_report"),
    )
    baseline = files.read()
    config.stash[_BASELINE] = None if files.update else baseline
    if not hasattr(config, "workerinput"):  # a worker of xdist hands its results over
        config.pluginmanager.register(MarkedResults(files, baseline), "tritter_mem_session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what rehearses a test in its place, where its mark asks for that."""
    if SESSION not in os.environ:  # else all is rehearsed already
        items[:] = [RehearsedTest.of(item) if _is_rehearsed(item) else item for item in items]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Find what a marked test needs, once its marks to skip have not skipped it."""
    if item.get_closest_marker(MARK) is not None and not _is_rehearsed(item):
        item.stash[_MARKED] = prepare(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Compare what a marked test needs with its budget."""
    marked = item.stash.get(_MARKED, None)
    if marked is None:
        return (yield)
    with marked.around_body(item.config.stash[_BASELINE]):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Lay the result into the report, which travels from xdist's workers."""
    report = yield
    marked = item.stash.get(_MARKED, None)
    if call.when == "call" and marked is not None and marked.result is not None:
        setattr(report, _ATTRIBUTE, json.dumps(marked.result.to_dict()))
    return report


@pytest.fixture
def memory_tracker(request: pytest.FixtureRequest) -> Iterator[MemoryTracker]:
    """A `MemoryTracker` that begins with the test: of CUDA where it is there, else of the CPU.

    Parametrize it indirectly for another device: `cpu`, `cuda:1`, `meta`.
    """
    import torch

    from tritter_mem.measure.tracker import MemoryTracker

    here = "cuda" if torch.cuda.is_available() else "cpu"
    with MemoryTracker(getattr(request, "param", here)) as tracker:
        yield tracker


@dataclass(slots=True, kw_only=True)
class MarkedTest:
    """A test with the mark.

    Attributes:
        name: the test's id.
        mark: its arguments.
        result: what it needs; None until the body of a test that is about it is done.
    """

    name: str
    mark: MemoryBudget
    result: Result | None = None

    @contextmanager
    def around_body(self, baseline: Baseline | None) -> Generator[None]:
        """Enter around the test's body, which runs only where what the mark names fits."""
        if self.result is not None:
            _fail_beyond(self.result, baseline)
            yield
            return
        from tritter_mem.check.budget import following

        _forget_last_failure()
        with following(self.mark) as result:
            yield
        self.result = _named(self.name, result())
        _fail_beyond(self.result, baseline)


class RehearsedTest(pytest.Item):
    """Stands for a test whose body runs in another process, over stand-ins for CUDA's libraries.

    Neither its fixtures nor its body run here, where there may be no GPU.
    """

    _line: tuple[Path | str, int | None, str]

    @classmethod
    def of(cls, item: pytest.Item) -> RehearsedTest:
        """The same test: its id, marks and place."""
        assert item.parent is not None  # noqa: S101  (only a session has none)
        found: RehearsedTest = cls.from_parent(item.parent, name=item.name, nodeid=item.nodeid)
        found.own_markers = item.own_markers
        found.keywords.update(item.keywords)
        path, line, name = item.reportinfo()
        found._line = Path(path), line, name
        return found

    def reportinfo(self) -> tuple[Path | str, int | None, str]:
        """Where the test is."""
        return self._line

    def runtest(self) -> None:
        """Rehearse the test, and compare what it took with its budget."""
        from tritter_mem.check.budget import rehearsed_result
        from tritter_mem.check.budget_mark import read_mark

        given, name = _closest_mark(self), _id_without_groups(self)
        settings = self.config.inipath
        options = [
            "--rootdir",
            str(self.config.rootpath),
            *(["-c", str(settings)] * bool(settings)),
        ]
        try:
            mark = read_mark(given.args, given.kwargs)
            with chdir(self.config.rootpath):
                result = _named(name, rehearsed_result(mark, name, options))
        except TritterMemError as error:
            _fail(*error.problems)
        marked = self.stash[_MARKED] = MarkedTest(name=name, mark=mark, result=result)
        with marked.around_body(self.config.stash[_BASELINE]):
            pass


def _is_rehearsed(item: pytest.Item) -> bool:
    mark = item.get_closest_marker(MARK)
    return mark is not None and mark.kwargs.get("rehearse") is True


def prepare(item: pytest.Item) -> MarkedTest:
    """Read a test's mark and, where it is not about the test's own body, find what is needed.

    A mark that is wrong, and what cannot be simulated or measured, ends the test with an error;
    where a GPU is asked for and none is there, the test is skipped.
    """
    from tritter_mem.check.budget import result_of, why_not_measured
    from tritter_mem.check.budget_mark import read_mark

    given = _closest_mark(item)
    name = _id_without_groups(item)
    try:
        with chdir(item.config.rootpath):
            mark = read_mark(given.args, given.kwargs)
            if reason := why_not_measured(mark):
                pytest.skip(f"{MARK}: {reason}")
            result = None if mark.is_of_body else _named(name, result_of(mark))
    except TritterMemError as error:
        _fail(*error.problems)
    return MarkedTest(name=name, mark=mark, result=result)


def _closest_mark(item: pytest.Item) -> pytest.Mark:
    """A test's own mark comes before its class's and module's."""
    (closest, mark), *others = item.iter_markers_with_node(MARK)
    if any(node is closest for node, _ in others):
        _fail("got several on one test, expected one; write a test for each")
    return mark


def _id_without_groups(item: pytest.Item) -> str:
    """The test's id, without the groups that xdist may add under `--dist loadgroup`."""
    marks = item.iter_markers("xdist_group")
    groups = {str(mark.args[0] if mark.args else mark.kwargs.get("name")) for mark in marks}
    return item.nodeid.removesuffix(f"@{'_'.join(sorted(groups))}") if groups else item.nodeid


def _named(name: str, result: Result) -> Result:
    return replace(result, profile={**result.profile, "name": name})


def _forget_last_failure() -> None:
    """Of another test: pytest keeps it for debuggers, and with it all that its frames hold.

    It forgets it itself before the next body, but after the peak of that has begun.
    """
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        vars(sys).pop(name, None)


def _fail_beyond(result: Result, baseline: Baseline | None) -> None:
    """End the test where it needs more than its budget, or than the baseline tolerates."""
    from tritter_mem.check.budget import compared
    from tritter_mem.report.budget_report import against_baseline, over_budget

    if result.verdict is not None and not result.verdict.fits:
        _fail(over_budget(result, result.verdict))
    if baseline is not None and (outcome := compared(result, baseline)).exit_code:
        _fail(against_baseline(outcome))


def _fail(*problems: str) -> NoReturn:
    """End the test with a message instead of a traceback: nothing in its code is wrong."""
    lines = (f"{MARK}: {problem}" for problem in problems)
    raise pytest.fail.Exception("\n".join(lines), pytrace=False) from None


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
            pytest.UsageError: it cannot be read, or a file not be written; known before tests run.
        """
        if self.update and self.baseline is None:
            raise pytest.UsageError("--memory-update-baseline needs --memory-baseline FILE")
        try:
            self._check_writable()
            return None if self.baseline is None else self._read(self.baseline)
        except TritterMemError as error:
            raise pytest.UsageError(*error.problems) from error

    def _check_writable(self) -> None:
        if self.report and self.baseline and self.report.absolute() == self.baseline.absolute():
            raise UsageError("--memory-report and --memory-baseline name the same file; name two")
        for path in filter(None, (self.report, self.baseline if self.update else None)):
            from tritter_mem.results.writing import check_writable

            check_writable(path)

    def _read(self, path: Path) -> Baseline:
        from tritter_mem.check.baseline_file import read_baseline
        from tritter_mem.results.baseline import Baseline

        if path.exists():
            return read_baseline(path)
        if self.update:
            return Baseline()
        make = f"pytest --memory-baseline {path} --memory-update-baseline"
        raise InputError(f"{path}: no such baseline; create it: {make}")


class MarkedResults:
    """Takes the results of marked tests from their reports, wherever the tests ran.

    Args:
        files: what to write.
        baseline: as it is before the session; None without one.
    """

    def __init__(self, files: Files, baseline: Baseline | None) -> None:
        self._files = files
        self._baseline = baseline
        self._texts: dict[str, str] = {}
        self._passed: set[str] = set()
        self._results: list[Result] = []
        self._outcomes: dict[str, CaseOutcome] = {}
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
        from tritter_mem.results.history import remember

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
        from tritter_mem.report.budget_report import summary

        width = terminalreporter.config.get_terminal_writer().fullwidth
        terminalreporter.section("tritter-mem")
        for line in (*summary(self._results, self._outcomes, width), *self._notes):
            terminalreporter.write_line(line)

    def _write_report(self) -> None:
        from tritter_mem.results.writing import write_text_atomically

        if self._files.report is not None:
            records = [result.to_dict() for result in self._results]
            write_text_atomically(self._files.report, json.dumps(records) + "\n")
            self._notes.append(f"{self._files.report}: {len(records)} results")

    def _compare(self) -> None:
        from tritter_mem.check.budget import compared, is_checked

        if self._baseline is not None:
            checked = filter(is_checked, self._results)
            self._outcomes = {r.name: compared(r, self._baseline) for r in checked}

    def _accept(self, results: list[Result]) -> None:
        """Write the baseline with what passed; the entries of other tests stay as they are."""
        from tritter_mem.check.baseline_file import read_baseline, write_baseline
        from tritter_mem.check.budget import accepted
        from tritter_mem.results.baseline import Baseline
        from tritter_mem.results.writing import one_writer_at_a_time

        path = self._files.baseline
        if path is None:
            return
        with one_writer_at_a_time(path):  # another session may have written it meanwhile
            before = read_baseline(path) if path.exists() else Baseline()
            new, outcomes = accepted(results, before)
            write_baseline(path, new)
        self._outcomes = {outcome.label: outcome for outcome in outcomes}
        self._notes.append(f"{path}: {len(outcomes)} of {len(new.entries)} entries written again")


def _read_result(text: str) -> Result:
    from tritter_mem.results.from_json import from_plain, parse_json
    from tritter_mem.results.run import Result

    return from_plain(Result, parse_json(text))
