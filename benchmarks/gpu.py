"""Everything that needs a CUDA device, part by part, with the evidence in one folder.

`make gpu`, or `python -m benchmarks.gpu`, runs all parts from the checkout, without a network and
without installing anything; `python -m benchmarks.gpu kernels` runs one. Each part writes its log
and its figures to `reports/<gpu>/`. All together keep below nine minutes: a part that would not is
ended. `routes` takes minutes and runs where it is named; it and `validate` go on where they were
ended. Exit code: 1 where a part failed, 3 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tritter_mem.devices.cuda import is_standin
from tritter_mem.errors import EXIT_USAGE, UsageError
from tritter_mem.evidence.validate import folder_of, refuse_rehearsed_evidence

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 530.0
TESTS = ("tests/kernels", "tests/measure/test_tracker.py")
"""Where tests are marked `gpu`; others may import what a machine with a GPU need not have."""


@dataclass(frozen=True)
class Outcome:
    """How a part ended."""

    part: str
    passed: bool
    seconds: float
    note: str


MEASURING = (
    "tests/measure/test_cuda.py",
    "tests/devices/test_device.py",
    "tests/oom/test_manager.py",
    "tests/test_pytest_plugin.py",
    "tests/docs/test_out_of_memory.py",
    "tests/evidence/test_probes.py",
    "tests/evidence/test_validate.py",
)
"""These measure the device's memory, so nothing may run beside them."""


def tests(_folder: Path) -> list[str]:
    """The tests that are marked `gpu`, side by side where pytest can do so."""
    parallel = ["--numprocesses", "8"] if find_spec("xdist") else []
    return [*_pytest(), *parallel, *TESTS]


def measuring(_folder: Path) -> list[str]:
    """The tests that measure, one after another."""
    return [*_pytest(), *(["--numprocesses", "0"] if find_spec("xdist") else []), *MEASURING]


def _pytest() -> list[str]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--no-header", "--tb=short"]
    return [*command, "-p", "no:cacheprovider"]


def kernels(folder: Path) -> list[str]:
    """The kernels' figures."""
    return [sys.executable, "-m", "benchmarks.kernels", "--output", str(folder / "kernels.json")]


def attention(folder: Path) -> list[str]:
    """The figures of attention over the cache, and of whole decode steps."""
    return [
        sys.executable,
        "-m",
        "benchmarks.attention",
        "--output",
        str(folder / "attention.json"),
    ]


def probes(folder: Path) -> list[str]:
    """What the context, libraries and operators take, beside what is assumed of them."""
    return [sys.executable, "-m", "benchmarks.probes", "--output", str(folder / "probes.json")]


def fragmentation(folder: Path) -> list[str]:
    """The case that is made to fragment, by allocator setting."""
    output = str(folder / "fragmentation.json")
    return [
        sys.executable, "-m", "benchmarks.fragmentation", "--device", "cuda", "--output", output,
    ]  # fmt: skip


def snapshots(folder: Path) -> list[str]:
    """Small snapshots of known runs."""
    return [sys.executable, "-m", "benchmarks.snapshots", "--output", str(folder / "snapshots")]


def validate(folder: Path) -> list[str]:
    """The bundled profiles; what is finished is kept, so that it goes on where it was ended."""
    page = str(folder / "validation.html")
    return [*_validate(folder), "--html", page, "--time-limit", "120"]


def routes(folder: Path) -> list[str]:
    """The routes by which 7B and 128K tokens fit a 16 GB card, under its 15 GiB: minutes each."""
    names = ("7b-128k-gqa", "7b-128k-hybrid", "7b-128k-int2", "7b-streaming-4k")
    configs = [word for name in names for word in ("--config", name)]
    own = folder / "routes"
    page = str(own / "validation.html")
    return [*_validate(own), *configs, "--budget", "15GiB", "--html", page]


def _validate(folder: Path) -> list[str]:
    command = [sys.executable, "-m", "tritter_mem", "validate", "--device", "cuda"]
    return [*command, "--output", str(folder)]


PARTS: dict[str, Callable[[Path], list[str]]] = {
    "tests": tests,
    "measuring": measuring,
    "kernels": kernels,
    "attention": attention,
    "probes": probes,
    "fragmentation": fragmentation,
    "snapshots": snapshots,
    "validate": validate,
    "routes": routes,
}
"""Each part's command, given the folder for what it writes."""
BY_NAME = ("routes",)
"""What takes too long to be run unless it is named."""
LIMITS = {"probes": 90.0, "fragmentation": 60.0, "snapshots": 60.0}
"""Seconds of parts that leave the rest to those after them."""
GRACE_SECONDS = 20.0
SUMMARIES = {
    "kernels": ("kernels.json", "benchmarks.kernels:target_lines"),
    "attention": ("attention.json", "benchmarks.attention:target_lines"),
    "fragmentation": ("fragmentation.json", "benchmarks.evidence:fragmentation_lines"),
    "validate": ("validation.json", "benchmarks.evidence:validation_lines"),
    "routes": ("routes/validation.json", "benchmarks.evidence:validation_lines"),
}
"""The figures of a part, and what makes lines of them."""
WRITES_ALWAYS = ("validate", "routes")
"""Parts whose figures are of this run even where it failed."""


def run(part: str, folder: Path, seconds: float) -> Outcome:
    """Run one part for at most so many seconds; its output goes to a log, and is shown."""
    print(f"== {part}", flush=True)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "model"), os.environ.get("PYTHONPATH", "")])
    start, note = time.monotonic(), ""
    with subprocess.Popen(
        PARTS[part](folder), cwd=ROOT, env=os.environ | {"PYTHONPATH": paths.rstrip(os.pathsep)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            output = _ended(process, interrupt=part in WRITES_ALWAYS)
            note = f"ended after {seconds:.0f} s"
    (folder / f"{part}.log").write_text(output.replace(f"{ROOT}/", ""))
    print(output, flush=True)
    passed = process.returncode == 0
    took = round(time.monotonic() - start, 1)
    return Outcome(part, passed, took, note or ("" if passed else f"exit {process.returncode}"))


def _ended(process: subprocess.Popen[str], interrupt: bool) -> str:
    """End a part; one that writes what is finished is interrupted first, and given time for it."""
    if interrupt:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=GRACE_SECONDS)[0]
    process.kill()
    return process.communicate()[0]


def summary(outcomes: list[Outcome], folder: Path) -> list[str]:
    """A short table: the parts, and what each comes to."""
    lines = [
        f"{o.part:<12} {'passed' if o.passed else 'FAILED':<8} {o.seconds:>6.0f} s  {o.note}"
        for o in outcomes
    ]
    for o in outcomes:
        if o.part in SUMMARIES and (o.passed or o.part in WRITES_ALWAYS):
            lines += _figures(folder, *SUMMARIES[o.part])
    return lines


def _figures(folder: Path, file: str, function: str) -> list[str]:
    if not (folder / file).exists():
        return []
    module, _, name = function.partition(":")
    lines: list[str] = getattr(import_module(module), name)(json.loads((folder / file).read_text()))
    return lines


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The parts that are asked for, all by default, and where their evidence goes."""
    parser = argparse.ArgumentParser(description="Run what needs a CUDA device.")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, help="default: reports/<gpu>")
    asked = parser.parse_args(arguments)
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"found part {unknown[0]}; allowed: {', '.join(PARTS)}")
    return asked


def main() -> int:
    """Run the parts; the exit code."""
    import torch

    asked = parse()
    if not torch.cuda.is_available():
        print("found no CUDA device; this runs what needs one", file=sys.stderr)
        return 3
    folder: Path = asked.output or ROOT / folder_of(torch.cuda.get_device_name(0))
    if is_standin():
        try:
            refuse_rehearsed_evidence(folder)
        except UsageError as error:
            print(error, file=sys.stderr)
            return EXIT_USAGE
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + LIMIT_SECONDS
    parts = asked.parts or [part for part in PARTS if part not in BY_NAME]
    outcomes = [run(p, folder, min(end - time.monotonic(), LIMITS.get(p, LIMIT_SECONDS)))
                for p in parts]  # fmt: skip
    (folder / "parts.json").write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    print("\n".join(["", f"evidence: {folder}", *summary(outcomes, folder)]))
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
