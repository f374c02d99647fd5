"""`make mutate`: are formulas tested? Each small wrong change of one must fail a test.

MUTATE_SEED (1) chooses MUTATE_COUNT (500) changes. Each runs against the tests that run its
statement, the quickest of each test function first, within MUTATE_SECONDS (40) of the processor,
and none is begun after MUTATE_MINUTES (60). It prints what no test noticed. `out/mutate` keeps what
is done, and which test runs which line: another run goes on from there, and tries again what
survived.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import tomllib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from tests.mutate.mutants import PACKAGES, ROOT, Mutant, files, mutants, sample
from tests.mutate.worker import KILLED, SURVIVED, WITHOUT_END

if TYPE_CHECKING:
    from coverage import CoverageData

OUT = ROOT / "out" / "mutate"
EQUIVALENT = Path(__file__).parent / "equivalent.toml"
TESTED_BY = ("tests/planner", "tests/allocator", "tests/models", "tests/simulation/cuda")
PROCESSES = 2
LONGEST_TEST = 20.0
SETTINGS = {"SEED": "1", "COUNT": "500", "SECONDS": "40", "MINUTES": "60"}
NOT_COVERED = "not covered"


def main() -> int:
    """Run every mutant of the sample; 1 where one survives without a reason."""
    seed, count = (
        int(os.environ.get("MUTATE_SEED", "1")),
        int(os.environ.get("MUTATE_COUNT", "500")),
    )
    seconds = int(os.environ.get("MUTATE_SECONDS", "40"))
    until = time.monotonic() + 60 * float(os.environ.get("MUTATE_MINUTES", "60"))
    print(f"MUTATE_SEED={seed} MUTATE_COUNT={count} MUTATE_SECONDS={seconds}", flush=True)
    chosen = sample(seed, count)
    OUT.mkdir(parents=True, exist_ok=True)
    coverage = Coverage()
    tests = CoveringTests(coverage.data, coverage.seconds)
    done = Done(OUT / "done.jsonl", coverage.seconds)
    jobs = [
        (mutant, {"file": mutant.file, "index": mutant.index, "seconds": seconds,
                  "tests": tests.of(mutant, seconds)})
        for mutant in chosen if done.of(mutant) not in (KILLED, WITHOUT_END)
    ]  # fmt: skip
    _run(jobs, done, until)
    _check_killers(done, chosen)
    return _print_table(chosen, done)


class Done:
    """How mutants ended, by their key and their file's content.

    Args:
        path: where it is kept.
        tests: those that there are. What a function that is gone noticed is forgotten.
    """

    def __init__(self, path: Path, tests: Iterable[str]) -> None:
        self._path, self._lock = path, threading.Lock()
        functions = {_function(test) for test in tests}
        self._found: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            if "::" not in entry["test"] or _function(entry["test"]) in functions:
                self._found[entry["id"]] = entry

    def entry(self, mutant: Mutant) -> dict[str, Any]:
        """What is known of a mutant; empty: nothing."""
        return self._found.get(_identity(mutant), {})

    def of(self, mutant: Mutant) -> str:
        """How it ended; empty: it was not run."""
        return str(self.entry(mutant).get("how", ""))

    def add(self, mutant: Mutant, answer: Mapping[str, Any]) -> None:
        """Keep how one ended."""
        entry = {"id": _identity(mutant), "key": mutant.key, "line": mutant.line, **answer}
        with self._lock:
            self._found[entry["id"]] = entry
            with self._path.open("a") as file:
                print(json.dumps(entry, ensure_ascii=False), file=file)


class Coverage:
    """Which tests run which line, and how long they take: measured once for each file of tests.

    Attributes:
        seconds: of each test, by its name.
        data: as coverage keeps it, with the test as context.
    """

    def __init__(self) -> None:
        from coverage import CoverageData

        self.seconds: dict[str, float] = {}
        self.data = CoverageData(no_disk=True)
        tests = [path for name in TESTED_BY for path in sorted((ROOT / name).glob("test_*.py"))]
        sources = _hash(*files())
        with ThreadPoolExecutor(PROCESSES) as pool:
            for found in pool.map(lambda path: _measured(path, _hash(path) + sources), tests):
                part = CoverageData(str(found.with_suffix(".coverage")))
                part.read()
                self.data.update(part)
                self.seconds |= _durations(found.with_suffix(".xml"))


def _measured(tests: Path, content: str) -> Path:
    """Where the coverage of a file of tests is, without an ending."""
    name = str(tests.relative_to(ROOT).with_suffix("")).replace("/", "-")
    found = OUT / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    if found.with_suffix(".xml").exists():
        return found
    for stale in OUT.glob(f"{name}-*"):
        stale.unlink()
    sources = ", ".join(f"tritter_mem/{package}" for package in PACKAGES)
    found.with_suffix(".rc").write_text(f"[run]\nsource = {sources}\n")
    report = found.with_suffix(".part")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tests), "--cov", "--cov-context=test",
         f"--cov-config={found.with_suffix('.rc')}", "--cov-report=", f"--junitxml={report}"],
        cwd=ROOT, check=False, stdout=subprocess.DEVNULL,
        env={**os.environ, "COVERAGE_FILE": str(found.with_suffix(".coverage"))},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{tests.relative_to(ROOT)} fails without a change")
    report.rename(found.with_suffix(".xml"))
    print(f"measured what {tests.relative_to(ROOT)} runs", flush=True)
    return found


def _hash(*paths: Path) -> str:
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.read_bytes())
    return whole.hexdigest()


def _identity(mutant: Mutant) -> str:
    return f"{_hash(ROOT / mutant.file)[:12]} {mutant.file} {mutant.index}"


class CoveringTests:
    """The tests that run a line, the quickest first.

    Args:
        data: which test runs which line, as coverage keeps it.
        seconds: that each test takes, by its name.
    """

    def __init__(self, data: CoverageData, seconds: Mapping[str, float]) -> None:
        self._data, self._seconds = data, seconds
        self._by_line: dict[str, dict[int, list[str]]] = {}

    def of(self, mutant: Mutant, seconds: float) -> list[str]:
        """Tests that run the statement of a mutant, for so many seconds.

        What a module does while it is imported, in whichever test, is tested by all that use it,
        and by those of its name: a test may compare a table, and run no line.
        """
        file = str(ROOT / mutant.file)
        if file not in self._by_line:
            self._by_line[file] = self._data.contexts_by_lineno(file)
        lines = self._by_line[file]
        first, last = mutant.lines
        found = {test for line in range(first, last + 1) for test in lines.get(line, ())}
        while_imported = set(lines[min(lines)]) if lines else set()
        if found <= while_imported:
            package, _, name = mutant.file.removeprefix("tritter_mem/").rpartition("/")
            own = f"tests/{package}/test_{name}::"
            found = {test for tests in lines.values() for test in tests}
            found |= {f"{test}|run" for test in self._seconds if test.startswith(own)}
        return list(self._within(found - {""}, seconds))

    def _within(self, contexts: Iterable[str], seconds: float) -> Iterator[str]:
        """The quickest for half of the time; then in turn one test of each function.

        Of those each function's quickest comes first.
        """
        names = {context.rpartition("|")[0] for context in contexts} & self._seconds.keys()
        ordered = sorted(names, key=lambda name: (self._seconds[name], name))
        spent = list(accumulate(self._seconds[name] for name in ordered))
        quick = bisect_right(spent, seconds / 2)
        yield from ordered[:quick]
        by_function: dict[str, list[str]] = {}
        for name in ordered[quick:]:
            by_function.setdefault(_function(name), []).append(name)
        left = seconds - (spent[quick - 1] if quick else 0.0)
        for turn in range(max(map(len, by_function.values()), default=0)):
            for tests in by_function.values():
                took = self._seconds[tests[turn]] if turn < len(tests) else 0.0
                if turn < len(tests) and took < min(left, LONGEST_TEST):
                    left -= took
                    yield tests[turn]


def _function(test: str) -> str:
    """A test's name without its parameters."""
    return test.partition("[")[0]


def _durations(path: Path) -> dict[str, float]:
    """Seconds of each test, by its name as pytest has it."""
    from xml.etree import ElementTree  # we wrote the file ourselves

    found = {}
    for case in ElementTree.parse(path).iter("testcase"):  # noqa: S314
        if "name" in case.attrib:
            file = case.attrib["classname"].replace(".", "/") + ".py"
            found[f"{file}::{case.attrib['name']}"] = float(case.attrib["time"])
    return found


def _run(jobs: Sequence[tuple[Mutant, dict[str, Any]]], done: Done, until: float) -> None:
    """Run jobs in a few processes until they, or the time, are over."""
    queue: SimpleQueue[tuple[Mutant, dict[str, Any]]] = SimpleQueue()
    for mutant, job in jobs:
        if job["tests"]:
            queue.put((mutant, job))
        else:
            done.add(mutant, {"how": NOT_COVERED, "test": ""})

    def work() -> None:
        with _worker() as ask:
            while time.monotonic() < until:
                try:
                    mutant, job = queue.get_nowait()
                except Empty:
                    return
                answer = ask(job)
                done.add(mutant, answer)
                print(f"{answer['how']}: {mutant.key}"[:160], flush=True)

    threads = [threading.Thread(target=work) for _ in range(PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _worker:  # noqa: N801
    """A process that runs jobs."""

    def __enter__(self) -> Any:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutate.worker"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        return self._ask

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _check_killers(done: Done, chosen: Sequence[Mutant]) -> None:
    """Fail where a test that noticed a mutant fails without one too: it would notice anything."""
    tests = sorted(
        {test for mutant in chosen if "::" in (test := done.entry(mutant).get("test", ""))}
    )
    with _worker() as ask:
        answer = ask({"file": None, "index": 0, "seconds": 3600, "tests": tests})
    if tests and answer["how"] != SURVIVED:
        raise SystemExit(f"a test fails without a change: {answer['test']}")


def _print_table(chosen: Sequence[Mutant], done: Done) -> int:
    reasons = {entry["mutant"]: entry["reason"]
               for entry in tomllib.loads(EQUIVALENT.read_text())["equivalent"]}  # fmt: skip
    changed = {mutant.file for mutant in chosen}
    known = {mutant.key for file in changed for mutant in mutants(ROOT / file)}
    counts = Counter(done.of(mutant) or "not run" for mutant in chosen)
    print(", ".join(f"{how}: {number}" for how, number in counts.most_common()))
    left = [mutant for mutant in chosen if done.of(mutant) not in (KILLED, WITHOUT_END, "")]
    print(f"{'how':12} {'where':60} change")
    for mutant in sorted(left, key=lambda mutant: (mutant.file, mutant.line)):
        how = "equivalent" if mutant.key in reasons else done.of(mutant)
        place = f"{mutant.file}:{mutant.line} {mutant.function}"
        print(f"{how:12} {place:60} {mutant.change}")
    unexplained = [mutant for mutant in left if mutant.key not in reasons]
    stale = [key for key in reasons if key.partition(" ")[0] in changed and key not in known]
    for key in stale:
        print(f"equivalent.toml: there is no such change: {key}")
    print(f"{len(chosen)} changes, {len(unexplained)} unexplained")
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main())
