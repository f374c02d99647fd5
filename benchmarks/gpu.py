"""Everything that needs a CUDA device, part by part, with the evidence in one folder.

`make gpu`, or `python -m benchmarks.gpu`, runs all parts from the checkout, without a network and
without installing anything, in eight minutes at most; `make gpu PARTS="smoke linears"` runs some.
The folder, `reports/<gpu>` or `OUT=folder`, gets four files:

    figures.jsonl   a line a row, written as the row ends
    log.txt         what the parts print
    summary.txt     parts, targets, what failed, what remains
    files.tar.gz    cases of the validation, snapshots and the like

A second call goes on where the first stopped: rows that have figures from the same code, card and
PyTorch are not repeated (`--again`: they are). A part that does not end in its time is ended, with
everything that it started, and what it has written stays. Where `smoke` finds a kernel that
computes something else than its reference, nothing runs after it. A row that cannot be run here, as
over stand-ins or without a package, is skipped, which is no failure.

Exit code: 1 where a part failed or something remains, 2 where the folder cannot be written to, 3
where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from benchmarks.card import Card
from benchmarks.evidence import part_line, summary
from benchmarks.records import Records
from benchmarks.rows import RESTART, ROOT

GRACE_SECONDS = 5.0
"""The end of a part's time, in which it is asked to end before it is made to."""
MOST_STARTS = 6
"""Of a part's process, which begins anew where a row has lost the device."""
POLL_SECONDS = 0.1
MOST_SWEEPS = 50
"""For processes that a part has left; one that the driver holds may outlast them."""
MARK = "TRITTER_GPU_PART"
"""Set for all that a part starts, so that it can be found and ended, whoever its parent is."""
CODE = ("benchmarks", "model", "tritter_mem", "profiles", "tests/kernels", "tests/measure")
"""What figures depend on."""


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        module: its `rows(files)` lists the rows.
        seconds: its limit.
        takes_rest: whether it may also use what the parts before it left of theirs.
        always: whether it runs in every call: what it makes may be gone.
    """

    module: str
    seconds: float
    takes_rest: bool = False
    always: bool = False


PARTS: dict[str, Part] = {
    "compile": Part("benchmarks.compile_ahead", 45, always=True),
    "smoke": Part("benchmarks.smoke", 40),
    "step": Part("benchmarks.step", 25),
    "linears": Part("benchmarks.linears", 25),
    "attention": Part("benchmarks.attention", 35),
    "scripts": Part("benchmarks.scripts", 65, takes_rest=True),
    "validate": Part("benchmarks.validations", 100, takes_rest=True),
    "variants": Part("benchmarks.variants", 30, takes_rest=True),
    "tests": Part("benchmarks.gpu_tests", 35, takes_rest=True),
    "probes": Part("benchmarks.probes", 35, takes_rest=True),
    "fragmentation": Part("benchmarks.fragmentation", 15, takes_rest=True),
    "snapshots": Part("benchmarks.snapshots", 20, takes_rest=True),
    "gemlite": Part("benchmarks.gemlite", 10, takes_rest=True),
}
"""In order of worth. The whole step comes first of what is timed."""
TIMES_OVER_STANDINS = 12
"""Limits are those of a card that is lent for minutes, in a machine of many cores. Stand-ins run on
any machine, where a limit is to end what hangs and nothing else."""


@dataclass(frozen=True)
class End:
    """How a part's process ended; `code` is negative where a signal ended it."""

    code: int
    over_time: bool


def environment() -> dict[str, str]:
    """For processes of the checkout, which is not installed."""
    paths = [str(ROOT), str(ROOT / "model"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def supervise(
    command: Sequence[str], raw: Path, seconds: float, show: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> End:  # fmt: skip
    """Run a command for at most so many seconds; nothing that it started is left afterwards.

    Its output goes to the file `raw`, not to a pipe, which a child of its could keep open. It is
    interrupted before its time is up, as Ctrl-C would, and killed as that ends.

    Args:
        command: the process.
        raw: where its output goes.
        seconds: its limit.
        show: is called now and then, to show what has been printed so far.
        clock: in seconds.
    """
    mark, start = uuid4().hex, clock()
    with raw.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment() | {MARK: mark}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def ends_by(moment: float) -> bool:
        """Wait, without releasing the process's number: the signals need it."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, process.pid, options) is None:
            if clock() >= moment:
                return False
            show()
            time.sleep(POLL_SECONDS)
        return True

    over_time = False
    try:
        over_time = not ends_by(start + max(seconds - GRACE_SECONDS, 1))
        if over_time:
            os.killpg(process.pid, signal.SIGINT)
            ends_by(start + seconds)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _kill_marked(mark)
        show()
    return End(process.returncode, over_time)


def _kill_marked(mark: str) -> None:
    """End what a part has started in other sessions, and wait until it has ended."""
    for _ in range(MOST_SWEEPS):
        found = list(_marked(f"{MARK}={mark}".encode()))
        if not found:
            return
        for number in found:
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _marked(wanted: bytes) -> Iterator[int]:
    """Numbers of the processes with this variable; one that has ended has none."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


@dataclass
class Log:
    """`log.txt`, which follows what parts print, without the checkout's path."""

    path: Path
    shown: TextIO = field(default_factory=lambda: sys.stdout)

    def say(self, text: str) -> None:
        """Print, and keep."""
        with self.path.open("a") as file:
            file.write(text)
        self.shown.write(text)
        self.shown.flush()

    def follow(self, raw: Path) -> Callable[[], None]:
        """What shows as much of a file as there is more than the last time, in whole lines."""
        read = 0

        def show() -> None:
            nonlocal read
            with raw.open("rb") as file:
                file.seek(read)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            read += len(whole)
            if whole:
                self.say(whole.decode(errors="replace").replace(f"{ROOT}/", ""))

        return show


@dataclass
class Files:
    """What parts write beside figures: in a folder of the machine's, packed into the evidence."""

    packed: Path
    folder: Path

    def unpack(self) -> None:
        """Bring back what an earlier call packed."""
        if self.packed.exists():
            with tarfile.open(self.packed) as archive:
                archive.extractall(self.folder, filter="data")

    def pack(self) -> None:
        """Pack all there is: the archive is whole at any time."""
        if any(self.folder.iterdir()):
            part = self.packed.with_suffix(".part")
            with tarfile.open(part, "w:gz") as archive:
                archive.add(self.folder, ".")
            part.replace(self.packed)


@dataclass
class Call:
    """One call of `make gpu`.

    Attributes:
        rest: seconds that parts have left of their limits.
    """

    records: Records
    card: Card
    log: Log
    files: Files
    rest: float = 0.0

    def run(self, name: str) -> bool:
        """Run a part, in as many processes as it takes; whether it is finished."""
        own = self.limit(name)
        limit = own + (self.rest if PARTS[name].takes_rest else 0)
        self.log.say(f"== {name}, {limit:.0f} s at most\n")
        start = time.monotonic()
        note = self._processes(name, start + limit)
        seconds = time.monotonic() - start
        self.rest = max(0.0, self.rest + own - seconds)
        passed = not note
        self.records.append(name, "ended", passed=passed, seconds=round(seconds, 1), note=note)
        self.log.say(f"== {part_line(self.records, name)}\n")
        self.files.pack()
        return passed

    def limit(self, name: str) -> float:
        """A part's limit in seconds, without what others have left."""
        return PARTS[name].seconds * (TIMES_OVER_STANDINS if self.card.standin else 1)

    def _processes(self, name: str, end: float) -> str:
        """What went wrong; empty where nothing did."""
        with tempfile.TemporaryDirectory() as folder:
            for number in range(MOST_STARTS):
                raw = Path(folder) / f"{number}.log"
                left = end - time.monotonic()
                ended = supervise(self._command(name), raw, left, self.log.follow(raw))
                if ended.over_time:
                    self._cut_off(name)
                    return "" if self._records(name).remaining(name) == [] else "over time"
                if ended.code < 0:
                    self._cut_off(name)
                elif ended.code != RESTART:
                    return self._failed(name, ended.code)
        return "the device was lost again and again"

    def _command(self, name: str) -> list[str]:
        records = asdict(self._records(name)) | {"path": str(self.records.path)}
        return [
            sys.executable, "-m", "benchmarks.rows", name, "--module", PARTS[name].module,
            "--card", json.dumps(asdict(self.card)), "--records", json.dumps(records),
            "--files", str(self.files.folder),
        ]  # fmt: skip

    def _records(self, name: str) -> Records:
        """The records as a part counts them."""
        return replace(self.records, again=self.records.again or PARTS[name].always)

    def _cut_off(self, name: str) -> None:
        """Say so of rows that had begun, and whose process could not."""
        for row, line in self.records.rows(name).items():
            if line["event"] == "begins":
                self.records.append(name, "failed", row=row, error="ended before it had")

    def _failed(self, name: str, code: int) -> str:
        mine = [x for x in self.records.lines() if x["call"] == self.records.call]
        failed = {x["row"] for x in mine if x["part"] == name and x["event"] == "failed"}
        if failed:
            return f"{len(failed)} row{'s' * (len(failed) > 1)} failed"
        return f"exit {code}" if code else ""

    def finished(self, name: str) -> bool:
        """Whether every row of a part that can be run here has its figures."""
        return self.records.remaining(name) == []


def code_of(root: Path) -> str:
    """A digest of what figures depend on; a copy without git has the same."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".yaml"} and path.is_file():
                digest.update(str(path.relative_to(root)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def card_here() -> tuple[Card, str] | None:
    """The card and PyTorch's version; the process that finds them takes its CUDA context along."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.card"], cwd=ROOT, check=False, capture_output=True,
        text=True, env=environment(),
    )  # fmt: skip
    if ran.returncode == 0:
        found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
        return Card(**found["card"]), found["torch"]
    print(ran.stderr.strip(), file=sys.stderr)
    return None


def folder_for(card: Card, asked: Path | None) -> Path | None:
    """Where evidence goes; None, with the reason, where it must not go.

    Figures of stand-ins are no evidence of a card, and the project keeps none.
    """
    name = re.sub(r"[^a-z0-9]+", "-", card.name.lower()).strip("-")
    folder = (asked or ROOT / "reports" / name).resolve()
    if card.standin and folder.is_relative_to((ROOT / "reports").resolve()):
        print(
            f"CUDA's libraries are stand-ins here, and nothing is measured: {folder} is below "
            "reports/, so name another folder (OUT=out/standin)",
            file=sys.stderr,
        )
        return None
    return folder


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The parts that are asked for, all by default, and where their evidence goes."""
    parser = argparse.ArgumentParser(description="Run what needs a CUDA device.")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, help="default: reports/<gpu>")
    parser.add_argument("--again", action="store_true", help="repeat what has figures")
    asked = parser.parse_args(arguments)
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"got part {unknown[0]}, expected {', '.join(PARTS)}")
    return asked


def run_all(call: Call, parts: Sequence[str]) -> Iterator[str]:
    """Run parts in their order; yields those that are not finished."""
    others = [name for name in parts if not PARTS[name].always]
    idle = bool(others) and all(map(call.finished, others))
    for name in parts:
        if idle or (call.finished(name) and not PARTS[name].always):
            call.log.say(f"== {name} has nothing left to run\n")
            call.rest += call.limit(name)
        elif not call.run(name):
            yield name
            if name == "smoke" and mismatches(call.records):
                call.log.say("== a kernel computes something else: nothing runs after smoke\n")
                return


def mismatches(records: Records) -> list[str]:
    """What the last try of each row of `smoke` found to differ."""
    rows = records.rows("smoke").values()
    return [x["error"] for x in rows if str(x.get("error", "")).startswith("MISMATCH")]


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run the parts; the exit code."""
    asked = parse()
    found = card_here()
    if found is None:
        return 3
    card, torch = found
    folder = folder_for(card, asked.output)
    if folder is None:
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    taken_with = {"code": code_of(ROOT), "card": card.name, "torch": torch}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    records = Records(folder / "figures.jsonl", now, taken_with, asked.again)
    records.append("all", "begins", on=asdict(card))
    parts = [part for part in PARTS if part in (asked.parts or PARTS)]
    unfinished: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        files = Files(folder / "files.tar.gz", Path(name))
        call = Call(records, card, Log(folder / "log.txt"), files)
        files.unpack()
        try:
            unfinished.extend(run_all(call, parts))
        finally:
            files.pack()
            limits = {part: call.limit(part) for part in parts}
            text = "\n".join(["", f"evidence: {folder}", *summary(records, limits), ""])
            (folder / "summary.txt").write_text(text.lstrip().replace(f"{ROOT}/", ""))
            print(text)
    return 1 if unfinished or any(records.remaining(part) for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
