"""The pytest plugin: `memory_budget`, `memory_tracker`, `--memory-baseline`, `--memory-report`.

pytest loads this module in every session of an environment that has the tool, so it imports nothing
until a test or an option asks for it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tritter_mem.check.baseline import Baseline
    from tritter_mem.check.budget_item import Budgeted
    from tritter_mem.measure.tracker import MemoryTracker

MARK = "memory_budget"
_MARKER = (
    f"{MARK}(budget, *, profile=None, module=None, ...): the test fails where the profile, the "
    "third-party code or, without either, its own body needs more memory than the budget"
)
_BUDGETED: pytest.StashKey[Budgeted] = pytest.StashKey()
_BASELINE: pytest.StashKey[Baseline | None] = pytest.StashKey()


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
    from tritter_mem.check.pytest_session import Files, Session

    files = Files(
        baseline=config.getoption("memory_baseline"),
        update=config.getoption("memory_update_baseline"),
        report=config.getoption("memory_report"),
    )
    baseline = files.read()
    config.stash[_BASELINE] = None if files.update else baseline
    if not hasattr(config, "workerinput"):  # a worker of xdist hands its results over
        config.pluginmanager.register(Session(files, baseline), "tritter_mem_session")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Find what a marked test needs, once its marks to skip have not skipped it."""
    if item.get_closest_marker(MARK) is not None:
        from tritter_mem.check.budget_item import prepare

        item.stash[_BUDGETED] = prepare(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Hold a marked test against its budget."""
    budgeted = item.stash.get(_BUDGETED, None)
    if budgeted is None:
        return (yield)
    with budgeted.around_body(item.config.stash[_BASELINE]):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Lay the result into the report, which travels from xdist's workers."""
    report = yield
    budgeted = item.stash.get(_BUDGETED, None)
    if call.when == "call" and budgeted is not None and budgeted.result is not None:
        from tritter_mem.check.pytest_session import attach

        attach(report, budgeted.result)
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
