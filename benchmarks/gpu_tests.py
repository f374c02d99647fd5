"""The tests that need a GPU, a row for each file: `make gpu PARTS=tests`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.card import here
from benchmarks.rows import ROOT, Figures, Row, command, has

TESTS = ("tests/kernels", "tests/measure/test_tracker.py")
"""Where tests are marked `gpu`; others may import what a machine with a GPU need not have."""
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
NOTHING_SELECTED = 5


def rows(_files: Path) -> Iterator[Row]:
    """Files side by side, then those that measure, one after another.

    Over stand-ins, where nothing computes, only what is measured can be right.
    """
    skipped = "these tests need what kernels compute" if here().standin else ""
    for path in _marked():
        yield Row(path, partial(tests_of, path), together=True, skipped=skipped)
    for path in MEASURING:
        yield Row(path, partial(tests_of, path))


def _marked() -> list[str]:
    """Files of `TESTS` that have a test for a GPU."""
    names = [ROOT / name for name in TESTS]
    files = [f for n in names for f in (sorted(n.glob("test_*.py")) if n.is_dir() else [n])]
    needs = re.compile(r"mark\.gpu|device: torch\.device")
    return [str(f.relative_to(ROOT)) for f in files if needs.search(f.read_text())]


def tests_of(path: str) -> Figures:
    """One file's; `pytest-timeout` and `pytest-xdist` need not be there."""
    alone = ["--numprocesses", "0"] if has("xdist") else []
    code, output = command(
        ["-m", "pytest", "-m", "gpu", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider",
         "-o", "addopts=--import-mode=importlib --strict-markers", *alone, path],
        allowed=(0, NOTHING_SELECTED),
    )  # fmt: skip
    return {"exit": code, "line": (output.strip().splitlines() or [""])[-1]}
