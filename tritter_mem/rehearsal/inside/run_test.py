"""Run one test of pytest in the user's environment, where this project may not be installed.

    python run_test.py [OPTIONS OF PYTEST] TEST

The mark of memory budgets is known here and does nothing: what the test takes is seen from outside.
"""

import importlib.util
import os
import sys


class KnownMark:
    """The mark, for an environment without this project's plugin."""

    def pytest_configure(self, config: object) -> None:
        """Register it."""
        config.addinivalue_line("markers", "memory_budget(budget, ...): rehearsed")  # type: ignore[attr-defined]


def main() -> int:
    """Pytest's exit code; 4, its code for a usage error, if pytest is not installed."""
    sys.path[0] = os.getcwd()  # as `python -m pytest` has it
    if importlib.util.find_spec("pytest") is None:
        print(
            f"{sys.prefix} has no pytest: {sys.executable} -m pip install pytest", file=sys.stderr
        )
        return 4
    import pytest

    in_this_process = ["-n0"] if importlib.util.find_spec("xdist") else []
    return int(pytest.main([*in_this_process, *sys.argv[1:]], plugins=[KnownMark()]))


sys.exit(main())
