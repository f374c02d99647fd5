"""Files that people name as inputs: opened without waiting, and remembered while a command runs.

A command writes over none of its inputs: `results.writing` asks here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

_inputs: ContextVar[set[Path] | None] = ContextVar("inputs", default=None)


@contextmanager
def remembering_inputs() -> Iterator[None]:
    """Remember inputs until the block ends; outside of such a block none are."""
    token = _inputs.set(set())
    try:
        yield
    finally:
        _inputs.reset(token)


def note_input(path: Path) -> None:
    """Remember a file as an input."""
    found = _inputs.get()
    if found is not None:
        found.add(path)


def is_input(path: Path) -> bool:
    """Whether a file is an input, by this name or another one."""
    return any(_same(path, other) for other in _inputs.get() or ())


def _same(path: Path, other: Path) -> bool:
    with suppress(OSError):
        return path.samefile(other)
    return path == other


def open_input(path: Path) -> BinaryIO:
    """Open a file that people name, and remember it.

    A pipe is read where somebody writes to it (`<(…)` of a shell), and else is empty: opened
    plainly, it would wait for a writer for ever.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # a NUL in the name
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
    try:
        os.set_blocking(descriptor, True)
        file = open(descriptor, "rb")  # noqa: PTH123, SIM115
    except BaseException:
        os.close(descriptor)
        raise
    note_input(path)
    return file


def is_there(path: Path) -> bool:
    """Whether a path leads to something; no, unlike pathlib, where its name is too long."""
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder, as `is_there`."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path) -> bool:
    """Whether a path leads to a regular file, as `is_there`."""
    return os.path.isfile(path)  # noqa: PTH113
