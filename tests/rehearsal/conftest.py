"""An environment with PyTorch's CUDA build, made once for a checkout: `.rehearsal`."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from tritter_mem.errors import MeasureError
from tritter_mem.rehearsal.build import refuse_other_machines
from tritter_mem.rehearsal.environment_setup import set_up

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".rehearsal"
TORCH = "2.14.0"
SCRIPTS = Path(__file__).parent / "scripts"


def index_answers() -> bool:
    """Whether the package index can be reached."""
    asked = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
    return subprocess.run([*asked, "filelock"], check=False, capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def environment() -> Path:
    """Its root. One worker makes it, 2.5 GB, while the others wait."""
    try:
        refuse_other_machines()
    except MeasureError as error:
        pytest.skip(str(error))
    complete, requirements = FOLDER / f"torch-{TORCH}", SCRIPTS / "requirements.txt"
    with (ROOT / ".rehearsal.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists() or complete.read_text() != requirements.read_text():
            try:
                set_up(FOLDER, TORCH, requirements)
            except MeasureError as error:
                if index_answers():
                    raise
                pytest.skip(f"the package index cannot be reached, so no CUDA build: {error}")
            complete.write_text(requirements.read_text())
    return FOLDER
