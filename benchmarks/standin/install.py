"""Make the folder `.standin`: PyTorch's CUDA build in an environment of its own, and stand-ins.

    python -m benchmarks.standin.install --torch 2.14.1 --triton 3.8.0

PyTorch comes without what it requires, which is CUDA itself, gigabytes of it: the stand-ins take
its place.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tritter_mem.rehearsal.build import build, cuda_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".standin"
PYTHON = FOLDER / "env" / "bin" / "python"
LIBRARIES = FOLDER / "lib"
TORCH, TRITON = "2.11.0", "3.6.0"
REQUIRED = (
    "filelock", "fsspec", "jinja2", "networkx", "setuptools<82", "sympy", "typing-extensions",
    "numpy", "nvidia-ml-py", "pandas", "pyyaml", "rich", "typer",
    "hypothesis", "pytest", "pytest-timeout", "pytest-xdist",
)  # fmt: skip
"""What PyTorch and the project import; a package that required PyTorch would bring CUDA."""


def install(torch: str = TORCH, triton: str = TRITON) -> None:
    """Make the folder, or bring it to these releases; PyTorch's of CUDA 13, so from 2.11 on."""
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", FOLDER / "env"], check=True)
    pinned = f"torch==={torch}", f"triton=={triton}"  # `===`: not a build for the CPU
    _pip("install", "--no-deps", "--no-compile", *pinned)
    _pip("install", "--constraint", str(ROOT / "constraints.txt"), *REQUIRED)
    [package] = FOLDER.glob("env/lib/python*/site-packages/torch")
    build(cuda_of(package), LIBRARIES)


def _pip(*arguments: str) -> None:
    """Quiet, for pip warns of every requirement of PyTorch that is left out."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    if found.returncode:
        sys.exit(found.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Install PyTorch's CUDA build, and stand-ins.")
    parser.add_argument("--torch", default=TORCH)
    parser.add_argument("--triton", default=TRITON, help="the release that PyTorch's asks for")
    asked = parser.parse_args()
    install(asked.torch, asked.triton)
