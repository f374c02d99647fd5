"""The local history: one line of JSON for every peak that a run came to.

It is in `.tritter-mem/history.jsonl` of the working folder, where `profile` and `check` add to it;
`TRITTER_MEM_HISTORY=off` keeps them from it. A line is added by a single write in append mode under
a lock, so that several writers do not mix. A line that cannot be read is left out.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tritter_mem.results.from_json import from_plain, parse_json
from tritter_mem.results.run import Result
from tritter_mem.units import MAX_BYTES

FILE = Path(".tritter-mem/history.jsonl")
VARIABLE = "TRITTER_MEM_HISTORY"
GIT_SECONDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """A run's peaks.

    Attributes:
        created: when, as ISO 8601.
        commit: of git; ends in `-dirty` where files differed from it; None outside of git.
        profile: its name.
        profile_hash: of its content.
        kind: planned, simulated or measured.
        gpu: the card, or `cpu`.
        torch: PyTorch's version; None where there was none.
    """

    created: str
    commit: str | None
    profile: str
    profile_hash: str
    kind: str
    gpu: str
    torch: str | None
    allocated_peak_bytes: int
    reserved_peak_bytes: int | None


def remember(results: Sequence[Result], file: Path = FILE) -> None:
    """Add the peaks of results to the history, unless it is switched off.

    A history that cannot be written is reported on standard error and fails nothing.
    """
    if not results or os.environ.get(VARIABLE, "").lower() in ("off", "0", "no", "false"):
        return
    commit = _commit()
    lines = [json.dumps(asdict(one)) for result in results for one in _peaks(result, commit)]
    try:
        _append(file, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        words = f"{file}: the history cannot be written: {error.strerror}; {VARIABLE}=off stops it"
        print(words, file=sys.stderr)


def _peaks(result: Result, commit: str | None) -> Iterator[Remembered]:
    for kind, use in result.by_kind().items():
        yield Remembered(
            created=result.created,
            commit=commit,
            profile=result.name,
            profile_hash=result.profile_hash,
            kind=kind,
            gpu=result.gpu_of(kind),
            torch=result.environment.torch,
            allocated_peak_bytes=use.allocated_peak_bytes,
            reserved_peak_bytes=use.reserved_peak_bytes,
        )


def _commit() -> str | None:
    """The commit that is checked out, and whether files differ from it."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603
            describe, capture_output=True, text=True, check=True, timeout=GIT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit yet
        return None
    return done.stdout.strip() or None


def _append(file: Path, text: bytes) -> None:
    """Write in one go at the end; a line that a writer left unfinished stays one by itself."""
    _make_folder(file.parent)
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with suppress(OSError):  # some network folders have no locks; lines mix there at worst
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # else a half-written line is taken for an end
        size = os.fstat(descriptor).st_size
        unfinished = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * unfinished + text)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """A folder that git leaves alone."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")


def read_history(file: Path = FILE) -> list[Remembered]:
    """Read the history, oldest first; lines that are no record are left out.

    Raises:
        OSError: the file cannot be read.
    """
    lines = file.read_bytes().splitlines()
    found = (remembered for line in lines if (remembered := _remembered(line)) is not None)
    return sorted(found, key=lambda one: one.created)


def _remembered(line: bytes) -> Remembered | None:
    try:
        found = from_plain(Remembered, parse_json(line), newer=True)
    except ValueError:
        return None
    peaks = (found.allocated_peak_bytes, found.reserved_peak_bytes or 0)
    return found if all(0 <= peak <= MAX_BYTES for peak in peaks) else None
