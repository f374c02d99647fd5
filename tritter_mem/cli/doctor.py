"""`tritter-mem doctor`: what is installed and present, and which commands that is enough for."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from tritter_mem.cli.options import Json
from tritter_mem.cli.outputs import print_json

if TYPE_CHECKING:
    from tritter_mem.results.run import Environment

CONF_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report: what was looked for and found, and what to do where it is missing."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def command(as_json: Json = False) -> None:
    """Show what is installed and which commands work here. Missing parts are not an error.

    Example: tritter-mem doctor
    """
    checks = list(examine())
    if as_json:
        print_json([asdict(check) for check in checks])
        return
    width = max(len(check.name) for check in checks)
    for check in checks:
        typer.echo(f"{'ok' if check.ok else 'missing':8}{check.name:{width + 2}}{check.found}")
        if check.advice and not check.ok:
            typer.echo(f"{'':{width + 10}}{check.advice}")


def examine() -> Iterator[Check]:
    """Look at each part in turn, then say which commands that is enough for."""
    from tritter_mem.devices.environment import collect_environment

    environment = collect_environment()
    torch_error = _torch_error()
    cuda = torch_error is None and _cuda_works()
    yield _python()
    yield _torch(environment, torch_error)
    yield _part(
        "triton",
        environment.triton,
        missing="not installed",
        advice="pip install triton (Linux): kernels on a GPU need it, nothing else does",
    )
    yield _part(
        "CUDA in torch",
        environment.cuda,
        missing="this build of PyTorch has none",
        advice="install a CUDA build of PyTorch to measure on a GPU",
    )
    yield _part(
        "driver",
        environment.driver,
        missing="no NVIDIA driver answers",
        advice="install NVIDIA's driver to measure on a GPU",
    )
    yield _gpu(environment, cuda)
    yield _yaml()
    yield _allocator()
    yield _rehearsal()
    yield from _commands(torch_error is None, cuda)


def _torch_error() -> str | None:
    """Why PyTorch cannot be imported; None where it can."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a library of CUDA that is not there
        return " ".join(str(error).split())
    return None


def _cuda_works() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _python() -> Check:
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    ok = sys.version_info >= (3, 11)
    return Check(name="python", ok=ok, found=found, advice="install Python 3.11 or newer")


def _torch(environment: Environment, error: str | None) -> Check:
    return Check(
        name="torch",
        ok=error is None,
        found=error or str(environment.torch),
        advice="pip install 'torch>=2.10': simulation and measurement need it, planning does not",
    )


def _part(name: str, found: str | None, missing: str, advice: str) -> Check:
    return Check(name=name, ok=found is not None, found=found or missing, advice=advice)


def _gpu(environment: Environment, cuda: bool) -> Check:
    from tritter_mem.units import format_bytes

    if environment.gpu is None:
        found = "no NVIDIA GPU is visible"
    else:
        found = f"{environment.gpu}, {format_bytes(environment.total_bytes or 0)}"
    if environment.gpu is not None and not cuda:
        found += "; PyTorch cannot use it"
    advice = "name the card to plan for with --gpu; tritter-mem gpus lists them"
    return Check(name="GPU", ok=cuda, found=found, advice=advice)


def _yaml() -> Check:
    import yaml

    return Check(
        name="YAML in C",
        ok=yaml.__with_libyaml__,
        found=f"PyYAML {yaml.__version__}",
        advice="reinstall PyYAML with libyaml; profiles load without it, more slowly",
    )


def _allocator() -> Check:
    found = [f"{name}={os.environ[name]}" for name in CONF_VARIABLES if os.environ.get(name)]
    return Check(name="allocator", ok=True, found=", ".join(found) or "PyTorch's defaults")


def _rehearsal() -> Check:
    """Whether commands can be rehearsed here, and in which environment."""
    from tritter_mem.errors import TritterMemError
    from tritter_mem.rehearsal.build import compiler, refuse_other_machines
    from tritter_mem.rehearsal.environment_setup import environment_folder
    from tritter_mem.rehearsal.launch import torch_of

    made = environment_folder() / "bin" / "python"
    try:
        refuse_other_machines()
        built_by = compiler()[0]
        there = torch_of(str(made) if made.exists() else sys.executable)
    except TritterMemError as error:
        return Check(name="rehearsal", ok=False, found="cannot be built here", advice=str(error))
    found = f"torch {there.version} in {there.python}, stand-ins by {built_by}"
    if there.cuda is not None:
        return Check(name="rehearsal", ok=True, found=found)
    advice = "tritter-mem rehearse --setup makes an environment with a CUDA build, without CUDA"
    return Check(name="rehearsal", ok=False, found="this torch has no CUDA", advice=advice)


def _commands(torch: bool, cuda: bool) -> Iterator[Check]:
    """What works here; planning always does."""
    yield Check(name="plan, audit, replay", ok=True, found="work here")
    for name, works in (("profile on the CPU", torch), ("profile on a GPU", cuda)):
        yield Check(name=name, ok=works, found="works here" if works else "does not work here")
