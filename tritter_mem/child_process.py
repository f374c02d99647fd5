"""Python processes that this one starts: they find the same modules and end with this process."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def python_running(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of the tool as a program.

    With -P, a file in the working folder does not stand in for a module.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def python_path() -> str:
    """`PYTHONPATH` for a process that is to find the modules that this one finds."""
    return os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)


def end_with(parent: int) -> None:
    """Ask the kernel to end this process with its parent, which may be killed before it can.

    Args:
        parent: the parent's process id, as the parent knows it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before we asked
        os.kill(os.getpid(), signal.SIGKILL)
