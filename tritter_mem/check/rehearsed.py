"""A command, or a test of pytest, over stand-ins for CUDA's libraries, as a record to compare."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tritter_mem.config.cards import find_card
from tritter_mem.errors import InputError, MeasureError, MemoryBudgetExceeded, UsageError
from tritter_mem.recordings.replay_snapshot import replay
from tritter_mem.rehearsal.environment_setup import environment_folder
from tritter_mem.rehearsal.launch import INSIDE, torch_of
from tritter_mem.rehearsal.rehearse import Options, rehearse
from tritter_mem.results.allocations import Allocation
from tritter_mem.results.baseline import Case
from tritter_mem.results.header import header
from tritter_mem.results.rehearsal import RankUse, Rehearsal
from tritter_mem.results.run import (
    Components,
    Environment,
    Holding,
    MemoryUse,
    OutOfMemory,
    Result,
)
from tritter_mem.temporary import temporary_folder

RUN_TEST = INSIDE / "run_test.py"
DEFAULT_GPU = "h100"
_SHOWN = 5
_REASON = "a command is rehearsed; it is neither planned nor simulated"


def rehearsed_command(case: Case) -> Result:
    """Rehearse a command; its own output goes to standard error.

    Raises:
        UsageError: it failed, or there is no such command.
        MemoryBudgetExceeded: it needs more memory than the GPU has.
        MeasureError: it cannot be rehearsed here, or the run cannot be trusted.
    """
    with open(2, "wb", closefd=False) as shown:
        options = Options(devices=case.gpus, output=shown)
        found = _rehearsed(case.command, case.gpu, options)
    if (use := found.rehearsed) is not None and use.out_of_memory is not None:
        raise MemoryBudgetExceeded(
            f"out of memory on {case.gpu}: {use.out_of_memory.requested_bytes:,} bytes were asked "
            f"for at {use.out_of_memory.operator}, with {use.allocated_peak_bytes:,} allocated"
        )
    return found


def rehearsed_test(name: str, gpu: str, more: Sequence[str]) -> Result:
    """Rehearse one pytest test in a separate process.

    It runs in this Python where that has a CUDA build of PyTorch, else in the environment that
    `rehearse --setup` made; pytest must be installed there.

    Args:
        name: the test's id.
        gpu: the card, as the table calls it.
        more: options of pytest.

    Raises:
        UsageError: the test failed.
        MeasureError: it cannot be rehearsed here, or the run cannot be trusted.
    """
    python, environment = _python()
    command = [python, str(RUN_TEST), *more, name]
    return _rehearsed(command, gpu, Options(environment=environment), "the test")


def _python() -> tuple[str, Path | None]:
    made = environment_folder()
    if torch_of(sys.executable).cuda is not None or not (made / "bin" / "python").exists():
        return sys.executable, None
    return str(made / "bin" / "python"), made


def _rehearsed(
    command: Sequence[str], gpu: str, options: Options, what: str = "the command"
) -> Result:
    """The record of a rehearsal that ended well, or out of memory."""
    with temporary_folder() as folder:
        done = rehearse(command, gpu, replace(options, snapshots=folder))
        _refuse(done, what)
        assert done.rehearsed is not None  # noqa: S101  (`_refuse`)
        return Result(
            **header(),
            environment=Environment(
                python=done.versions.get("python", ""),
                torch=done.versions.get("torch"),
                triton=done.versions.get("triton"),
                cuda=done.versions.get("cuda"),
                allocator_conf=done.allocator_conf,
            ),
            profile={"name": shlex.join(command)},
            profile_hash="",
            planned_reason=_REASON,
            simulated_reason=_REASON,
            rehearsed=_use(done, done.rehearsed),
        )


def _refuse(done: Rehearsal, what: str) -> None:
    """Raise where there are no figures, or none that can be trusted."""
    if done.interrupted:
        raise KeyboardInterrupt
    if done.failed and not done.out_of_memory:
        raise UsageError(f"{what} failed with exit code {done.command.exit_code}, see its output")
    if done.rehearsed is None:
        raise MeasureError(f"{what} did not use a GPU", *done.trust.problems)
    if done.rehearsed.allocated_peak_bytes is None or not done.trust.trusted:
        decided = done.trust.values_decided_shapes
        lines = [f"a value that no kernel computed decided at {line}" for line in decided[:_SHOWN]]
        raise MeasureError(
            f"{what} cannot be trusted over stand-ins: `tritter-mem rehearse` says more",
            *lines,
            *done.trust.problems,
        )


def _use(done: Rehearsal, most: RankUse) -> MemoryUse:
    """What the fullest process took."""
    held = _held(most.snapshot)
    refused = done.refusals[-1] if done.out_of_memory else None
    components = Components().items()
    for one in held:
        components[one.component] += one.allocated_bytes
    return MemoryUse(
        device=done.gpu,
        components=Components(**{f"{name}_bytes": size for name, size in components.items()}),
        phases=(),
        allocated_peak_bytes=most.allocated_peak_bytes or 0,
        reserved_peak_bytes=most.reserved_peak_bytes,
        context_bytes=find_card(done.gpu).context_bytes,
        device_peak_bytes=most.device_peak_bytes,
        held_at_peak=held,
        out_of_memory=None
        if refused is None
        else OutOfMemory(
            operator=refused.where,
            module="",
            phase="",
            requested_bytes=refused.requested_bytes,
            allocated_bytes=refused.allocated_bytes,
            reserved_bytes=refused.reserved_bytes,
            limit_bytes=done.total_bytes,
        ),
    )


def _held(snapshot: str | None) -> tuple[Holding, ...]:
    """By module and component, where the history says so; empty where it does not."""
    try:
        devices = replay(snapshot).devices if snapshot is not None else ()
    except InputError:
        return ()
    found = [one.held_by_module for one in devices if one.held_by_module is not None]
    if not found:
        return ()
    fullest = max(found, key=lambda one: one.total_bytes)
    return tuple(map(_holding, fullest.allocations))


def _holding(one: Allocation) -> Holding:
    module = ".".join(frame.name for frame in one.path)
    return Holding(module=module, component=one.component, allocated_bytes=one.allocated_bytes)
