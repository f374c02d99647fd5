"""Temporary files and folders that are gone after their owner, however it ends.

The owner holds a lock on each; the kernel releases it when the process ends. Whoever makes the next
one removes those beside it that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

_FOLDER, _FILE = "tritter-mem-run-", ".tritter-mem-"  # other folders of ours hold no lock


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for what this process writes and nobody keeps.

    Raises:
        OSError: the folder for temporary files takes none.
    """
    _remove_abandoned(Path(tempfile.gettempdir()), _FOLDER)
    folder, lock = _locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if _still_there(descriptor):
            return folder, descriptor
        os.close(descriptor)


@contextmanager
def temporary_file_beside(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file in the folder of `target`, with its permissions and owner where it is there.

    Whoever keeps it renames it before the block ends.

    Raises:
        OSError: the folder takes no files.
    """
    _remove_abandoned(target.parent, _FILE)
    path, descriptor = _locked_file(target)
    with open(descriptor, "wb") as file:  # noqa: PTH123
        try:
            yield file, path
        finally:
            path.unlink(missing_ok=True)


def _locked_file(target: Path) -> tuple[Path, int]:
    before = target.stat() if target.exists() else None
    while True:
        path = target.parent / f"{_FILE}{token_hex(8)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666 if before is None else 0o600)
        try:
            if before is not None:
                _take_over(descriptor, before)
            if _still_there(descriptor):
                return path, descriptor
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take_over(descriptor: int, before: os.stat_result) -> None:
    """Give a file the owner and the permissions that another one has, as far as we may."""
    with suppress(OSError):
        os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _still_there(descriptor: int) -> bool:
    """Lock what was just made; whether nobody took it for abandoned and removed it before."""
    with suppress(OSError):  # a network folder without locks: then nobody removes anything either
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove what processes that were killed have left, of this user alone."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in [entry for entry in entries if entry.name.startswith(prefix)]:
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    _remove_unlocked(Path(entry.path))


def _remove_unlocked(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(descriptor)
