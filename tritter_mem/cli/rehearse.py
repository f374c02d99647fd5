"""`tritter-mem rehearse`: the user's own command, unchanged, on a GPU that is not there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritter_mem.cli.options import Json, complete_gpus, size_of
from tritter_mem.cli.outputs import print_json
from tritter_mem.errors import InputError, UsageError

if TYPE_CHECKING:
    from tritter_mem.rehearsal.launch import Until
    from tritter_mem.results.rehearsal import Rehearsal
    from tritter_mem.results.replay import Replay

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- COMMAND…", help="The command to run, such as: python train.py"),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        help="The GPU to pretend, such as rtx-4090.",
        autocompletion=complete_gpus,
    ),
]
Gpus = Annotated[int, typer.Option("--gpus", metavar="N", help="The number of GPUs to pretend.")]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget", metavar="SIZE", help="Limit the memory of each GPU, such as to 20GiB."
    ),
]
UntilText = Annotated[
    str | None,
    typer.Option(
        "--until",
        metavar="TEXT|SECONDS",
        help="Stop a command that does not end by itself, such as a server, when its output has "
        "this text or after these seconds. vLLM and SGLang servers stop once they are ready.",
    ),
]
HostLimit = Annotated[
    str | None,
    typer.Option(
        "--host-limit",
        metavar="SIZE",
        help="End the command once its processes hold more of the host's memory, such as 16GiB.",
    ),
]
Snapshots = Annotated[
    Path | None,
    typer.Option(
        "--snapshot", metavar="DIR", help="Keep PyTorch's memory snapshots in this folder."
    ),
]
Accept = Annotated[
    bool,
    typer.Option(
        "--accept-untrusted",
        help="Accept a run in which values that no kernel computed decided a shape or a branch.",
    ),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Also write one HTML page with charts."),
]
Env = Annotated[
    Path | None,
    typer.Option(
        "--env", metavar="DIR", help="The Python environment to run in: a folder with bin/python."
    ),
]
Setup = Annotated[
    bool,
    typer.Option("--setup", help="Make an environment with PyTorch's CUDA build, without CUDA."),
]
Torch = Annotated[
    str | None,
    typer.Option(
        "--torch", metavar="RELEASE", help="With --setup: the PyTorch release, such as 2.14.0."
    ),
]
Requirements = Annotated[
    Path | None,
    typer.Option("-r", metavar="FILE", help="With --setup: a requirements file to install too."),
]
Rank = Annotated[
    int | None,
    typer.Option("--rank", metavar="R", help="Rehearse only this rank of --world-size."),
]
WorldSize = Annotated[
    int, typer.Option("--world-size", metavar="W", help="The number of ranks of the real job.")
]
LONGEST_SECONDS = 1_000_000
MOST_REPLAYED = 2
"""Processes whose history a page shows; each takes some hundred KB of it."""


def command(  # noqa: PLR0913, PLR0917  (each is an option)
    words: Words = None,
    gpu: Gpu = None,
    gpus: Gpus = 1,
    budget: Budget = None,
    until: UntilText = None,
    host_limit: HostLimit = None,
    snapshot: Snapshots = None,
    accept_untrusted: Accept = False,
    html: Html = None,
    rank: Rank = None,
    world_size: WorldSize = 1,
    env: Env = None,
    setup: Setup = False,
    torch: Torch = None,
    requirements: Requirements = None,
    as_json: Json = False,
) -> None:
    """Run your own command without a GPU and see how much GPU memory each process would use.

    The command runs unchanged on PyTorch's CUDA build. PyTorch's allocator, autograd and host code
    are real; CUDA's libraries are replaced by stand-ins, and kernels compute nothing. Run
    `tritter-mem rehearse --setup` once to install a CUDA build of PyTorch without CUDA.

    Exit code: 0 fits; 1 out of memory; 2 the command failed or could not start; 3 the run cannot be
    trusted, or it did not use a GPU.

    Example: tritter-mem rehearse --gpu rtx-4090 -- python train.py --batch-size 8
    """
    if setup:
        _set_up(env, torch, requirements)
        return
    words, gpu = _asked(words, gpu, html)
    from tritter_mem.rehearsal.rehearse import Options, rehearse

    with _folder_for(snapshot, html) as folder:
        options = Options(
            devices=gpus,
            budget_bytes=size_of(budget, "--budget"),
            until=_until(until),
            host_bytes=size_of(host_limit, "--host-limit"),
            snapshots=folder,
            accept_untrusted=accept_untrusted,
            environment=env,
            rank=rank,
            world_size=world_size,
            output=sys.stderr.buffer if as_json else None,
        )
        done = rehearse(words, gpu, options)
        if html is not None:
            _write_page(html, done)
        if snapshot is None:
            done = _without_snapshots(done)
    if as_json:
        print_json(done.to_dict())
    else:
        from tritter_mem.report.rehearsal_report import render_rehearsal
        from tritter_mem.report.terminal import make_console

        render_rehearsal(done, make_console())
    if done.exit_code:
        raise typer.Exit(done.exit_code)


def _asked(words: list[str] | None, gpu: str | None, html: Path | None) -> tuple[list[str], str]:
    """The command and the card, before anything runs."""
    if not words:
        raise UsageError("missing COMMAND: write it after `--`, as in: -- python train.py")
    if gpu is None:
        raise UsageError("missing --gpu: name the GPU to pretend; `tritter-mem gpus` lists them")
    if html is not None:
        from tritter_mem.results.writing import check_writable

        check_writable(html)
    return words, gpu


def _set_up(env: Path | None, torch: str | None, requirements: Path | None) -> None:
    from tritter_mem.rehearsal.build import stand_ins_for
    from tritter_mem.rehearsal.environment_setup import environment_folder, set_up

    folder = env or environment_folder()
    release = set_up(folder, torch, requirements)
    [package] = folder.glob("lib/python*/site-packages/torch")
    stand_ins_for(package)
    typer.echo(f"torch {release} is in {folder}; install more with {folder}/bin/pip", err=True)


def _until(text: str | None) -> Until | None:
    from tritter_mem.rehearsal.launch import Until

    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        return Until(text=text)
    if not 0 < seconds <= LONGEST_SECONDS:
        raise UsageError(f"--until: got {text:.30} s, expected more than 0 and at most 1,000,000 s")
    return Until(seconds=seconds)


@contextmanager
def _folder_for(snapshot: Path | None, html: Path | None) -> Iterator[Path | None]:
    """Where snapshots go: where they were asked for; for a page alone, a folder that goes away."""
    if snapshot is not None or html is None:
        yield snapshot
        return
    from tritter_mem.temporary import temporary_folder

    with temporary_folder() as folder:
        yield folder


def _without_snapshots(done: Rehearsal) -> Rehearsal:
    from dataclasses import replace

    ranks = tuple(replace(use, snapshot=None) for use in done.ranks)
    most = done.rehearsed and replace(done.rehearsed, snapshot=None)
    return replace(done, ranks=ranks, rehearsed=most)


def _write_page(html: Path, done: Rehearsal) -> None:
    from tritter_mem.report.rehearsal_report import render_rehearsal_html
    from tritter_mem.results.writing import write_text_atomically

    write_text_atomically(html, render_rehearsal_html(done, list(_replays(done))))


def _replays(done: Rehearsal) -> Iterator[tuple[str, Replay]]:
    """The histories of the fullest processes; of one that left none, nothing."""
    from tritter_mem.recordings.replay_snapshot import replay

    ranks = sorted(done.ranks, key=lambda use: -use.device_peak_bytes)
    for use in ranks[:MOST_REPLAYED]:
        if use.snapshot is None:
            continue
        name = f"Rank {use.rank}" if use.rank is not None else f"Process {use.process}"
        try:
            yield name, replay(use.snapshot, segment_maps=True)
        except InputError:
            continue
