"""Every error that the tool raises on purpose, and the exit code each maps to."""

from __future__ import annotations

from collections.abc import Sequence

from tritter_mem.text import printable

EXIT_OK = 0
EXIT_DOES_NOT_FIT = 1
EXIT_USAGE = 2
EXIT_NOT_MEASURED = 3
EXIT_INTERRUPTED = 130
_REQUIRED = ("jinja2", "pandas", "plotly", "rich", "torch", "triton")
LONGEST_LINE = 1000
_PACKAGES = {"yaml": "pyyaml", "pynvml": "nvidia-ml-py"}


class TritterMemError(Exception):
    """Base of the tool's errors.

    Attributes:
        problems: one line for each thing that is wrong. What they quote may come from anywhere, so
            control characters in them are escaped, and long ones are cut.
    """

    exit_code = EXIT_USAGE

    def __init__(self, *problems: str) -> None:
        lines = tuple(printable(problem, LONGEST_LINE) for problem in problems)
        super().__init__("\n".join(lines))
        self.problems: Sequence[str] = lines


class UsageError(TritterMemError):
    """A wrong option, argument or library call."""


class ConfigError(TritterMemError):
    """A wrong profile, card table or setting; holds every problem found, not only the first."""


class InputError(TritterMemError):
    """A file that cannot be read or is not what it should be (a snapshot, a result)."""


class OutputError(TritterMemError):
    """An output that cannot be written."""


class MeasureError(TritterMemError):
    """The measurement could not be made: no device, a dead child, a time limit, out of memory."""

    exit_code = EXIT_NOT_MEASURED


class SimulationError(TritterMemError):
    """The simulation could not be made: the code needs what a run without a device has not."""

    exit_code = EXIT_NOT_MEASURED


class MemoryBudgetExceeded(TritterMemError):  # noqa: N818  (the specification's name)
    """The peak went over the budget."""

    exit_code = EXIT_DOES_NOT_FIT


def missing_package(error: ModuleNotFoundError) -> str | None:
    """What to install, where the missing module is of a package that this project requires."""
    module = (error.name or "").partition(".")[0]
    package = _PACKAGES.get(module, module if module in _REQUIRED else None)
    return package and f"this needs {package}, which is not installed: pip install {package}"
