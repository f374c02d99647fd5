"""Files written whole or not at all."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tritter_mem.errors import OutputError
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

    Where the block fails or is interrupted, what was at `path` stays, and nothing else is left.

    Raises:
        OutputError: the path cannot be written.
    """
    target = path.resolve()
    temporary = target.parent / f".tritter-mem-{secrets.token_hex(8)}.tmp"
    try:
        _refuse_special(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
        temporary.replace(target)
    except BaseException as error:  # an interrupt too leaves nothing behind
        _remove(temporary)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def check_writable(path: Path) -> None:
    """Find out before a long run that its output cannot be written.

    Raises:
        OutputError: `path` is no regular file, or its folder does not take files.
    """
    target = path.resolve()
    try:
        _refuse_special(target)
        folder = next(parent for parent in target.parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _refuse_special(target: Path) -> None:
    """A folder cannot be replaced by a file, and a device or a pipe must not be."""
    if target.exists() and not target.is_file():
        raise OSError(0, "it is there and is no regular file")


def _remove(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:  # its folder is no folder: then nothing was written either
        return


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{printable(path)}: cannot be written: {error.strerror}; "
        "name a file in a folder that takes files"
    )
