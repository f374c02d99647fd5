"""Files written whole or not at all, and never over an input."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tritter_mem.errors import OutputError
from tritter_mem.input_files import is_input
from tritter_mem.temporary import temporary_file_beside
from tritter_mem.text import printable


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, as `open_atomically` does.

    Raises:
        OutputError: the path cannot be written.
    """
    with open_atomically(path) as file:
        file.write(text.encode())


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is at `path` once the block has ended; missing folders are made.

    Where the block fails or is interrupted, what was at `path` stays, and nothing else is left. A
    file that is replaced keeps its permissions, and its owner where this process may.

    Raises:
        OutputError: the path cannot be written, or is an input of the command.
    """
    target = _target(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file_beside(target) as (file, temporary):
            yield file
            file.flush()
            temporary.replace(target)
    except OSError as error:
        raise _unwritable(path, error) from error


def check_writable(path: Path) -> None:
    """Find out before a long run that its output cannot be written.

    Raises:
        OutputError: `path` is no regular file, is an input of the command, or its folder does not
            take files.
    """
    target = _target(path)
    try:
        folder = next(parent for parent in target.parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def one_writer_at_a_time(path: Path) -> Iterator[None]:
    """Keep other processes out that read a file in order to write it anew.

    The lock is on the file's folder: the file itself is replaced.

    Raises:
        OutputError: the folder cannot be made or opened.
    """
    folder = _target(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with suppress(OSError):  # some network folders have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _target(path: Path) -> Path:
    """Where a path leads, which may be written.

    A folder cannot be replaced by a file, and a device or a pipe must not be.
    """
    try:
        target = _resolved(path)
        if target.exists() and not target.is_file():
            raise OSError(0, "it exists and is not a regular file")
    except OSError as error:
        raise _unwritable(path, error) from error
    if is_input(target):
        raise OutputError(
            f"{printable(path)}: cannot be written: this command reads it; name another file"
        )
    return target


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # links that lead to each other, up to Python 3.12
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{printable(path)}: cannot be written: {error.strerror}; "
        "name a file in a folder that takes files"
    )
