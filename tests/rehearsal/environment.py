"""`make .rehearsal`: an environment with PyTorch's CUDA build, made once for a checkout.

Tests make it where it is not there. Made beforehand, it takes no time in which they wait for it.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

from tritter_mem.errors import MeasureError
from tritter_mem.rehearsal.build import refuse_other_machines
from tritter_mem.rehearsal.environment_setup import set_up

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".rehearsal"
TORCH = "2.14.0"
SCRIPTS = Path(__file__).parent / "scripts"


class CannotBeHereError(Exception):
    """This machine cannot have it; says why."""


def make() -> Path:
    """Its root. One process makes it, 2.5 GB, while others wait.

    Raises:
        CannotBeHereError: no stand-ins for this machine, or no package index.
        MeasureError: the index is there, and it fails all the same.
    """
    try:
        refuse_other_machines()
    except MeasureError as error:
        raise CannotBeHereError(str(error)) from error
    complete, requirements = FOLDER / f"torch-{TORCH}", SCRIPTS / "requirements.txt"
    with (ROOT / ".rehearsal.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists() or complete.read_text() != requirements.read_text():
            try:
                set_up(FOLDER, TORCH, requirements)
            except MeasureError as error:
                if _index_answers():
                    raise
                raise CannotBeHereError(
                    f"the package index cannot be reached, so no CUDA build: {error}"
                ) from error
            complete.write_text(requirements.read_text())
    return FOLDER


def _index_answers() -> bool:
    """Whether the package index can be reached."""
    asked = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
    return subprocess.run([*asked, "filelock"], check=False, capture_output=True).returncode == 0


if __name__ == "__main__":
    try:
        print(make())
    except CannotBeHereError as reason:  # tests that want it skip, and say so
        print(reason)
