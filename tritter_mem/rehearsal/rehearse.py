"""`rehearse`: a command, unchanged, over stand-ins for CUDA's libraries, and what it took."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from tritter_mem.config.cards import GpuCard, find_card
from tritter_mem.errors import OutputError, UsageError
from tritter_mem.rehearsal.collect import Left, collect
from tritter_mem.rehearsal.engines import engine_of, figures_of
from tritter_mem.rehearsal.environment_setup import environment_folder
from tritter_mem.rehearsal.launch import (
    MOST_DEVICES,
    Ended,
    Machine,
    Until,
    environment_for,
    run,
    shown_bytes,
    stand_ins_of,
    until_ready,
)
from tritter_mem.results.header import header
from tritter_mem.results.rehearsal import Command, RankUse, Rehearsal, Trust, fullest
from tritter_mem.results.run import Verdict
from tritter_mem.temporary import temporary_folder

NOT_COUNTED = (
    "the CUDA context: its size comes from the table of GPUs, not from this run",
    "kernels that are loaded later, CUDA graphs' memory in the driver, and streams' timing: events "
    "complete at once",
)
_OF_NCCL = "NCCL's buffers: several hundred MiB per process on a real GPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a command is rehearsed.

    Attributes:
        devices: how many cards there are.
        budget_bytes: a cap on the memory of each; None: what the card has.
        until: when to end a command that would not end; None: a server that is known, once it is
            ready, any other at its own end.
        host_bytes: a cap on what the command's processes hold of the host's memory together; beyond
            it the command is ended and has failed.
        snapshots: where the allocators' histories are kept; None: nowhere.
        accept_untrusted: whether a run counts that cannot be trusted.
        environment: the root of the environment to run in; None: that of the command.
        rank: the rank to rehearse alone; None: what the command starts.
        world_size: how many ranks there would be.
        output: where the command's standard output goes; None: to this process's.
    """

    devices: int = 1
    budget_bytes: int | None = None
    until: Until | None = None
    host_bytes: int | None = None
    snapshots: Path | None = None
    accept_untrusted: bool = False
    environment: Path | None = None
    rank: int | None = None
    world_size: int = 1
    output: IO[bytes] | None = None


def rehearse(command: Sequence[str], gpu: str, options: Options = Options()) -> Rehearsal:
    """Run a command over stand-ins for CUDA's libraries, and collect what its processes took.

    Args:
        command: the command and its arguments.
        gpu: the card that is pretended, as the table calls it.
        options: how.

    Returns:
        The record; `exit_code` says how it ended.

    Raises:
        UsageError: there is no such command, or an option is wrong.
        ConfigError: there is no such card.
        MeasureError: nothing can be rehearsed here; says what is missing.
    """
    card = find_card(gpu)
    machine = _machine(card, options)
    if not command:
        raise UsageError("missing COMMAND: write it after `--`")
    libraries, folder = stand_ins_of(command, options.environment, environment_folder())
    with _session() as session:
        environment = environment_for(machine, libraries, session, folder)
        argv = _resolved(command, environment)
        until = replace(options.until or until_ready(command), host_bytes=options.host_bytes)
        ended = run(argv, environment, until, options.output)
        left = collect(session, ended.asked_at)
        if options.snapshots is not None:
            left.uses = tuple(_keep(left.uses, options.snapshots))
        else:
            left.uses = tuple(replace(use, snapshot=None) for use in left.uses)
    return _record(command, machine, options, ended, left)


def _machine(card: GpuCard, options: Options) -> Machine:
    if card.vendor != "nvidia":
        raise UsageError(
            f"--gpu: {card.name} is an AMD card; a rehearsal runs PyTorch's CUDA build, which has "
            "none. `tritter-mem plan` plans a model on it"
        )
    if not 1 <= options.devices <= MOST_DEVICES:
        raise UsageError(f"--gpus: got {options.devices}, expected 1 to {MOST_DEVICES}")
    memory = shown_bytes(card)
    if options.budget_bytes is not None:
        if options.budget_bytes <= card.context_bytes:
            raise UsageError("--budget: the CUDA context alone needs more")
        memory = min(memory, options.budget_bytes)
    if options.rank is not None and not 0 <= options.rank < options.world_size:
        raise UsageError(f"--rank: got {options.rank}, expected 0 to {options.world_size - 1}")
    return Machine(
        card=card,
        devices=options.devices,
        memory_bytes=memory,
        rank=options.rank,
        world_size=options.world_size,
    )


def _resolved(command: Sequence[str], environment: dict[str, str]) -> list[str]:
    """The command with its program as the environment's path finds it."""
    found = shutil.which(command[0], path=environment["PATH"])
    if found is None:
        advice = f"; to run it: -- python {command[0]}" if command[0].endswith(".py") else ""
        raise UsageError(f"{command[0]}: no such command{advice}")
    return [found, *command[1:]]


@contextmanager
def _session() -> Iterator[Path]:
    """A folder of this rehearsal's own, which does not stay."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder())
        except OSError as error:
            raise OutputError(f"no folder for temporary files: {error.strerror}") from error
        yield folder


def _keep(uses: Sequence[RankUse], folder: Path) -> Iterator[RankUse]:
    """Move the snapshots to where they stay, named by rank or process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept: dict[str, str] = {}
        for use in uses:
            if use.snapshot is None:
                yield use
                continue
            name = f"rank-{use.rank}" if use.rank is not None else f"process-{use.process}"
            if use.snapshot not in kept:
                kept[use.snapshot] = str(folder / f"{name}.pickle")
                shutil.move(use.snapshot, kept[use.snapshot])
            yield replace(use, snapshot=kept[use.snapshot])
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error


def _record(command: Sequence[str], machine: Machine, options: Options, ended: Ended,
            left: Left) -> Rehearsal:  # fmt: skip
    most, engine = fullest(left.uses), engine_of(command)
    done = Rehearsal(
        **header(),
        gpu=machine.card.name,
        title=machine.card.title,
        devices=machine.devices,
        total_bytes=machine.memory_bytes,
        context_bytes=machine.card.context_bytes,
        context_source=machine.card.context_source,
        command=Command(
            argv=tuple(command),
            exit_code=ended.exit_code,
            seconds=round(ended.seconds, 3),
            ended_by=ended.by,
        ),
        trust=_trust(left, machine, ended),
        engine=figures_of(engine, ended.lines) if engine is not None else None,
        rehearsed=most,
        ranks=left.uses,
        refusals=left.refusals,
        versions=left.versions,
        allocator_conf=left.allocator_conf,
        accepted=options.accept_untrusted,
        interrupted=ended.interrupted or ended.exit_code == -signal.SIGINT,
    )
    return replace(done, verdict=_verdict(done))


def _verdict(done: Rehearsal) -> Verdict | None:
    """Whether the card's memory, or the cap, sufficed; None where the run cannot say."""
    counts = done.trust.trusted or done.accepted
    if done.rehearsed is None or not (done.out_of_memory or (counts and not done.failed)):
        return None
    refused = max((one.requested_bytes for one in done.refusals), default=0)
    needs = done.rehearsed.device_peak_bytes + (refused if done.out_of_memory else 0)
    return Verdict(
        fits=not done.out_of_memory,
        budget_bytes=done.total_bytes,
        headroom_bytes=done.total_bytes - needs,
        basis="rehearsed",
    )


def _trust(left: Left, machine: Machine, ended: Ended) -> Trust:
    problems = []
    if left.unwatched:
        problems.append(
            f"{len(left.unwatched)} of the processes used a device without PyTorch being watched "
            "in them (a Python that was started with -I or -E, or no Python)"
        )
    if left.cpu_torch and not left.uses:
        problems.append(f"torch {left.cpu_torch} is built without CUDA")
    uncounted = [*NOT_COUNTED, *left.by_rule, *left.uncounted]
    if ended.unanswered:
        uncounted.append(ended.unanswered)
    ranks = {use.rank for use in left.uses}
    if machine.devices > 1 and len(ranks) > 1:
        uncounted.append(_OF_NCCL)
    if machine.rank is not None:
        uncounted.append(_OF_NCCL)
    problems += [text for text in left.uncounted if "too old" in text]
    return Trust(
        stubs_called=left.stubs,
        values_decided_shapes=left.decided,
        assumed=left.assumed,
        not_followed=left.not_followed,
        uncounted=tuple(uncounted),
        problems=tuple(problems),
    )
