"""`rehearse --setup`: an environment with a CUDA build of torch, and nothing of CUDA itself.

PyTorch's wheel requires NVIDIA's libraries, gigabytes that the stand-ins take the place of. Empty
distributions of the same names and versions keep pip from bringing them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.rehearsal.launch import torch_of

NEEDED_BYTES = 4 << 30
"""What an environment with torch takes while it is made, about."""
_REQUIREMENT = re.compile(
    r"Requires-Dist: (?P<name>(?:nvidia|cuda-toolkit)[\w.-]*)(?:\[[^]]*\])?\s*"
    r"==\s*(?P<version>[\w.+!]+)"
)


def environment_folder() -> Path:
    """Where `--setup` makes its environment: `XDG_DATA_HOME`, else in the home."""
    named = os.environ.get("XDG_DATA_HOME")
    root = Path(named) if named else Path.home() / ".local" / "share"
    return root / "tritter-mem" / "rehearsal"


def set_up(folder: Path, torch: str | None, requirements: Path | None) -> str:
    """Make the environment, or bring it to another torch; what is there already stays.

    Args:
        folder: its root.
        torch: the release, such as `2.14.0`; None: the newest.
        requirements: what else is to be installed, as pip takes it.

    Returns:
        The release of torch that is there now.

    Raises:
        UsageError: a file of requirements is not there.
        MeasureError: it cannot be made: no network, no room, no such release.
    """
    if requirements is not None and not requirements.is_file():
        raise UsageError(f"-r: {requirements} is not a file")
    _refuse_full(folder)
    python = folder / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    wanted = f"torch==={torch}" if torch else "torch"  # `===`: not a build for the CPU
    _pip(python, "--no-deps", "--upgrade", wanted)
    [package] = folder.glob("lib/python*/site-packages/torch")
    there = torch_of(str(python))
    if there.cuda is None:
        raise MeasureError(f"the index gives torch {there.version}, a build for the CPU")
    for name, version in nvidia_requirements(package.parent):
        write_empty_distribution(package.parent, name, version)
    more = ["-r", str(requirements)] if requirements else []
    _pip(python, f"torch==={there.version}" if torch is None else wanted, "numpy", *more)
    return str(there.version)


def _refuse_full(folder: Path) -> None:
    there = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free = shutil.disk_usage(there).free
    if free < NEEDED_BYTES and not (folder / "bin").exists():
        raise MeasureError(
            f"{there}: {free >> 30} GiB of disk are free; the environment takes about 4 GiB"
        )


def nvidia_requirements(site: Path) -> Iterator[tuple[str, str]]:
    """Name and version of each of NVIDIA's distributions that the installed torch requires."""
    [metadata] = site.glob("torch-*.dist-info/METADATA")
    for line in metadata.read_text().splitlines():
        if found := _REQUIREMENT.match(line):
            yield found["name"], found["version"]


def write_empty_distribution(site: Path, name: str, version: str) -> None:
    """A distribution without files, which pip takes for installed; a real one stays."""
    stem = re.sub(r"[-_.]+", "_", name)
    for other in site.glob(f"{stem}-*.dist-info"):
        if "tritter-mem" not in (other / "INSTALLER").read_text():
            return
        shutil.rmtree(other)
    folder = site / f"{stem}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Summary: empty: tritter-mem rehearses without it\n"
    )
    (folder / "INSTALLER").write_text("tritter-mem\n")
    (folder / "RECORD").write_text("")


def _pip(python: Path, *arguments: str) -> None:
    _run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    )


def _run(command: Sequence[str]) -> None:
    made = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    if made.returncode:
        lines = [line for line in made.stderr.strip().splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line and "ResolutionImpossible" not in line]
        shown = (errors or lines or ["failed"])[-1]
        raise MeasureError(f"{' '.join(command[:5])} …: {shown[:300]}")
