"""The tests that `make coverage` runs: those of five packages that are quick, marked `covered`."""

from __future__ import annotations

from pathlib import Path

PACKAGES = ("results", "config", "models", "allocator", "recordings")
"""The packages of `tritter_mem` whose coverage is measured."""
TESTS = tuple(
    Path(__file__).parents[1] / name for name in (*PACKAGES, "check", "rehearsal/test_launch.py")
)
_SLOW = ("test_huggingface_modules.py", "test_bundled_models.py", "test_recorded_snapshots.py")


def is_covered(path: Path) -> bool:
    """Whether `make coverage` runs the tests of a file."""
    return path.name not in _SLOW and any(path.is_relative_to(tests) for tests in TESTS)
