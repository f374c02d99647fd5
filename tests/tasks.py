"""Four tasks of somebody who has just cloned the repository: `make tasks`.

Only lines of README are typed, in a fresh clone and a fresh environment. Each task must end with
its answer within two minutes. Installation is timed separately. Needs a package index and 5 GB of
disk. On a machine whose processors are busy with other programs, processor seconds count.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT_S = 120
INSTALL = "pip install '.[hf]'"
SETUP = "tritter-mem rehearse --setup --torch 2.14.0"


@dataclass(frozen=True)
class Task:
    """What somebody wants, the lines that they type, and what the last one must answer."""

    name: str
    lines: tuple[str, ...]
    answer: str


TASKS = (
    Task(
        "Does Qwen3-32B fit my card?",
        ("tritter-mem plan qwen3-32b --gpu h100",),
        r"^fits: needs [\d.]+ GiB",
    ),
    Task(
        "Why did my job die?",
        ("tritter-mem replay docs/examples/out-of-memory.pickle",),
        r"Use expandable_segments:True: every recorded\s+request is served",
    ),
    Task(
        "Will my script run?",
        ("tritter-mem rehearse --gpu rtx-4090 -- python docs/examples/train_gpt.py",),
        r"^fits: the fullest process takes [\d.]+ GiB",
    ),
    Task(
        "Gate my CI",
        ("tritter-mem check --update-baseline qwen3-0.6b", "tritter-mem check"),
        r"^qwen3-0.6b .* ok\s*$",
    ),
)


def lines_of_readme(text: str) -> set[str]:
    """What README shows to be typed, without comments."""
    return {
        re.sub(r"\s+#.*", "", line.removeprefix("$ ")).strip()
        for block in re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if line.startswith("$ ")
    }


def not_in_readme(text: str) -> set[str]:
    """Lines of the tasks that README does not have."""
    typed = {INSTALL, SETUP, *(line for task in TASKS for line in task.lines)}
    return typed - lines_of_readme(text)


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of all processors."""

    clock_s: float
    processor_s: float

    def __str__(self) -> str:
        return f"{self.clock_s:6.1f} s, {self.processor_s:5.1f} s of processors"

    def __add__(self, other: Took) -> Took:
        return Took(self.clock_s + other.clock_s, self.processor_s + other.processor_s)

    @property
    def is_too_long(self) -> bool:
        busy = os.getloadavg()[0] > (os.cpu_count() or 1) + 1
        return (self.processor_s if busy else self.clock_s) > LIMIT_S


def now() -> Took:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(time.monotonic(), children.ru_utime + children.ru_stime)


def type_line(line: str, clone: Path, environment: dict[str, str]) -> tuple[str, Took]:
    """Run a line in the clone; its output, and what it took.

    Raises:
        SystemExit: it failed.
    """
    begin = now()
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=clone, env=environment, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    end = now()
    took = Took(end.clock_s - begin.clock_s, end.processor_s - begin.processor_s)
    if done.returncode:
        sys.exit(f"$ {line}\n{done.stdout}\nexit code {done.returncode}")
    return done.stdout, took


def run(folder: Path) -> None:
    """Clone, install, and do each task.

    Raises:
        SystemExit: a line failed, an answer is missing, or a task took too long.
    """
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    if missing := not_in_readme((clone / "README.md").read_text()):
        sys.exit(f"README does not have: {missing}")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    environment = os.environ | {
        "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_DATA_HOME": str(folder / "data"),
    }
    pinned = {"PIP_CONSTRAINT": str(clone / "constraints.txt")}
    print(f"{type_line(INSTALL, clone, environment | pinned)[1]}  {INSTALL}", flush=True)
    print(f"{type_line(SETUP, clone, environment)[1]}  {SETUP}", flush=True)
    for task in TASKS:
        done = [type_line(line, clone, environment) for line in task.lines]
        took = sum((one for _, one in done), Took(0, 0))
        print(f"{took}  {task.name}", flush=True)
        if not re.search(task.answer, done[-1][0], re.MULTILINE):
            sys.exit(f"{task.name} has no answer:\n{done[-1][0]}")
        if took.is_too_long:
            sys.exit(f"{task.name} takes more than {LIMIT_S} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        run(Path(name))
