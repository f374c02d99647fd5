"""`tritter-mem replay`: a recorded snapshot under other allocator settings."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritter_mem.cli.options import Json, size_of
from tritter_mem.cli.outputs import print_json
from tritter_mem.errors import EXIT_DOES_NOT_FIT
from tritter_mem.input_files import note_input

if TYPE_CHECKING:
    from tritter_mem.recordings.replay_snapshot import OnProgress

Snapshot = Annotated[
    Path,
    typer.Argument(metavar="SNAPSHOT", help="A file written by torch.cuda.memory._dump_snapshot."),
]
AllocConf = Annotated[
    list[str],
    typer.Option(
        "--alloc-conf",
        metavar="CONF",
        help="More settings to try, as in PYTORCH_CUDA_ALLOC_CONF; may be repeated.",
    ),
]
Capacity = Annotated[
    str | None,
    typer.Option(
        "--capacity",
        metavar="SIZE",
        help="Memory that PyTorch may reserve on the card, such as 15GiB.",
    ),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Also write one HTML page with charts."),
]
QUIET_SECONDS = 1.0


def command(
    snapshot: Snapshot,
    alloc_conf: AllocConf = [],  # noqa: B006  (typer copies it)
    capacity: Capacity = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Replay a PyTorch memory snapshot under other allocator settings. Needs no GPU.

    Shows the reserved memory and the fragmentation that each setting would have had, recommends
    one, and lists the code that held the most memory at the peak.

    Exit code: 0, or 1 if --capacity is given and the recorded settings do not fit in it; 2 if the
    file is not a snapshot.

    Example: tritter-mem replay snapshot.pickle --capacity 15GiB --alloc-conf max_split_size_mb:32
    """
    from tritter_mem.recordings.replay_snapshot import replay
    from tritter_mem.results.writing import check_writable

    capacity_bytes = size_of(capacity, "--capacity")
    if html is not None:
        note_input(snapshot)
        check_writable(html)
    with _progress() as on_progress:
        found = replay(
            snapshot,
            alloc_confs=alloc_conf,
            capacity_bytes=capacity_bytes,
            segment_maps=html is not None,
            on_progress=on_progress,
        )
    if html is not None:
        from tritter_mem.report.replay_report import render_replay_html
        from tritter_mem.results.writing import write_text_atomically

        write_text_atomically(html, render_replay_html(found))
    if as_json:
        print_json(found.to_dict())
    else:
        from tritter_mem.report.replay_report import render_replay
        from tritter_mem.report.terminal import make_console

        render_replay(found, make_console())
    if capacity_bytes is not None and not found.fits:
        raise typer.Exit(EXIT_DOES_NOT_FIT)


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar on standard error, shown once the work has taken a second."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from tritter_mem.report.terminal import make_console

    columns = (TextColumn("replaying"), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=make_console(sys.stderr), transient=True)
    task = bar.add_task("replaying", total=1.0)
    start = time.monotonic()

    def on_progress(done: float) -> None:
        bar.update(task, completed=done)
        if not bar.live.is_started and time.monotonic() - start > QUIET_SECONDS:
            bar.start()

    try:
        yield on_progress
    finally:
        if bar.live.is_started:
            bar.stop()
