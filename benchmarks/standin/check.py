"""Everything that is held against PyTorch's own CUDA allocator, part by part: `make standin`.

A part's name runs it alone: `python -m benchmarks.standin -m benchmarks.standin.check operators`.
Exit code 1: a part failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from benchmarks.gpu_tests import MEASURING
from benchmarks.standin.install import ROOT

_ONE_AFTER_ANOTHER = ("-p", "no:cacheprovider", "--numprocesses", "0")
PARTS = {
    "operators": ("benchmarks.standin.operators",),
    "allocator": ("benchmarks.standin.allocator",),
    "profiles": ("benchmarks.standin.profiles",),
    "tests": ("pytest", "-q", "-m", "gpu and not computes", *_ONE_AFTER_ANOTHER, *MEASURING),
    "validate": (
        "tritter_mem", "validate", "--device", "cuda", "--output", "out/standin",
        "--config", "tiny", "--config", "125m",
        "--config", "7b-128k-gqa", "--config", "7b-streaming-4k",
    ),
}  # fmt: skip
"""Each part's module and its arguments."""


def run(part: str) -> bool:
    """Run one part, its output shown; whether it passed."""
    print(f"== {part}", flush=True)
    start = time.monotonic()
    passed = subprocess.run([sys.executable, "-m", *PARTS[part]], cwd=ROOT, check=False)
    how = "passed" if passed.returncode == 0 else "FAILED"
    print(f"== {part} {how}, {time.monotonic() - start:.0f} s", flush=True)
    return passed.returncode == 0


def main() -> int:
    """Run the parts that are named, all by default; the exit code."""
    parser = argparse.ArgumentParser(description="Hold this project against PyTorch's allocator.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="part")
    parts = parser.parse_args().parts or list(PARTS)
    failed = [part for part in parts if not run(part)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
