"""Runs tests against one mutant after another: `python -m tests.mutate.worker`, a job a line.

What takes long to import is imported once; each job is a fork of this process, in which the mutated
module is imported in place of its file. No file is changed.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.mutate.mutants import ROOT, mutated

MEMORY_BYTES = 8 << 30
SURVIVED, KILLED, WITHOUT_END, BROKEN = "survived", "killed", "without end", "broken"
NOT_FOUND = 4  # pytest's exit code where there is no such test
NOT_RUN = 5  # and where it ran none


class Loader(importlib.abc.InspectLoader):
    """Loads a module from a tree."""

    def __init__(self, tree: ast.Module, path: Path) -> None:
        self.tree, self.path = tree, path

    def get_source(self, fullname: str) -> str:
        del fullname
        return self.path.read_text()

    def get_code(self, fullname: str) -> Any:
        del fullname
        return compile(self.tree, str(self.path), "exec")


class Finder(importlib.abc.MetaPathFinder):
    """Finds one module, mutated."""

    def __init__(self, name: str, tree: ast.Module, path: Path) -> None:
        self.name, self.loader = name, Loader(tree, path)

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname != self.name:
            return None
        place = self.loader.path
        return importlib.util.spec_from_file_location(fullname, place, loader=self.loader)


class FirstFailure:
    """A plugin of pytest that remembers which test failed first."""

    name = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name = f"collection of {report.nodeid}"


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a fork: how it ended, which test failed, and seconds of the processor."""
    reading, writing = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        _run_tests(job, writing)
    os.close(writing)
    answer = b""
    with open(reading, "rb") as pipe:  # noqa: PTH123
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() - start > 10 * job["seconds"] + 60:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.05)
        answer = pipe.read()
    if answer:
        return {**json.loads(answer), "wall": round(time.monotonic() - start, 1)}
    how = WITHOUT_END if os.WIFSIGNALED(done[1]) else BROKEN
    return {
        "how": how,
        "test": f"wait status {done[1]}",
        "wall": round(time.monotonic() - start, 1),
    }


def _run_tests(job: dict[str, Any], writing: int) -> None:
    # The tests are chosen to take so long at most, by what they took on a machine that was idle.
    resource.setrlimit(resource.RLIMIT_CPU, (3 * job["seconds"], 3 * job["seconds"]))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    how, test = _outcome(job)
    used = resource.getrusage(resource.RUSAGE_SELF)
    answer = {"how": how, "test": test, "cpu": round(used.ru_utime + used.ru_stime, 1)}
    os.write(writing, json.dumps(answer).encode())
    os._exit(0)


def _outcome(job: dict[str, Any]) -> tuple[str, str]:
    import pytest

    failure = FirstFailure()
    if job["file"] is not None:
        path = ROOT / job["file"]
        name = job["file"].removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, Finder(name, mutated(path, job["index"]), path))
        try:
            importlib.import_module(name)
        except Exception as error:
            return KILLED, f"import: {type(error).__name__}"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov",
               "--hypothesis-seed=0", "--timeout=0"]  # fmt: skip
    code = pytest.main([*options, *job["tests"]], plugins=[failure])
    if code == NOT_FOUND:  # a table that is changed renames the tests of its rows
        functions = dict.fromkeys(test.partition("[")[0] for test in job["tests"])
        code = pytest.main([*options, *functions], plugins=[failure])
    if failure.name:
        return KILLED, failure.name
    return (SURVIVED, "") if code == 0 else (BROKEN, f"pytest ended with {code}")


def main() -> None:
    """Answer jobs from standard input."""
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401

    os.chdir(ROOT)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
