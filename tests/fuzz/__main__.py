"""`python -m tests.fuzz`: files changed at random for FUZZ_SECONDS, 60 where it is not set.

Prints its seed; FUZZ_SEED repeats a run. Each target has a process of limited memory, and each
file a limited time of the processor. What goes wrong is printed, and the file joins the corpus.
Then the tests of structures run under Hypothesis, with the same seed.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random, SystemRandom

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import CORPUS, TARGETS, run

STRUCTURES = "test_structures.py"
STRUCTURE_TESTS = 6
SECONDS_A_FILE = 30.0
MEMORY_BYTES = 4 << 30


def main() -> int:
    """Run every target, and then the tests of structures."""
    seconds = float(os.environ.get("FUZZ_SECONDS", "60"))
    seed = int(os.environ.get("FUZZ_SEED") or SystemRandom().randrange(1 << 32))
    print(f"FUZZ_SEED={seed} FUZZ_SECONDS={seconds:g}", flush=True)
    each = seconds / (len(TARGETS) + STRUCTURE_TESTS)
    wrong = [name for name in TARGETS if not _ends_well(name, seed, each)]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         f"--timeout={each + 600:g}", str(Path(__file__).parent / STRUCTURES)],
        env={**os.environ, "FUZZ_TEST_SECONDS": str(each), "FUZZ_SEED": str(seed)}, check=False,
    )  # fmt: skip
    if tests.returncode:
        wrong.append("structures")
    print("fuzz: clean" if not wrong else f"fuzz: wrong: {', '.join(wrong)}", f"(seed {seed})")
    return 1 if wrong else 0


def _ends_well(name: str, seed: int, seconds: float) -> bool:
    current = Path(f"out/fuzz/{name}-{os.getpid()}")  # two runs at once keep apart
    current.parent.mkdir(parents=True, exist_ok=True)
    current.touch()
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, str(seed), str(seconds), str(current)],
        check=False,
    )
    content = current.read_bytes()
    current.unlink()
    if done.returncode == 0:
        return True
    kept = CORPUS / name / f"found-{hashlib.sha256(content).hexdigest()[:12]}"
    kept.write_bytes(content)
    print(f"{name}: exit code {done.returncode}; the file is {kept}", flush=True)
    return False


def fuzz(name: str, seed: int, seconds: float, current: Path) -> None:
    """Run one target until its time is over, or something goes wrong with the file at `current`."""
    target, random = TARGETS[name], Random(f"{name} {seed}")  # noqa: S311
    seeds = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())] + target.more()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        content = mutated(random.choice(seeds), seeds, target.text, random)
        current.write_bytes(content)
        signal.setitimer(signal.ITIMER_PROF, SECONDS_A_FILE)  # SIGPROF ends the process
        run(target, content)
        count += 1
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(f"{name}: {count} files", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        fuzz(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
    else:
        sys.exit(main())
