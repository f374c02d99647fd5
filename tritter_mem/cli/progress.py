"""Progress on standard error: of a simulation, and of reading a model's files."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType
    from rich.progress import Progress as Bar

    from tritter_mem.simulation.progress import Progress

QUIET_SECONDS = 1.0
BAR_COLUMNS = 24


@contextmanager
def showing(wanted: bool = True) -> Iterator[Progress]:
    """Give a `Progress` to a simulation and show it, once a second has passed, on a terminal.

    Args:
        wanted: whether it may be shown at all.
    """
    from tritter_mem.report.terminal import make_console
    from tritter_mem.simulation.progress import Progress

    progress, console = Progress(), make_console(sys.stderr)
    if not wanted or not console.is_terminal:
        yield progress
        return
    from rich.live import Live

    start = time.monotonic()

    def drawn() -> RenderableType:
        return draw(progress) if time.monotonic() - start > QUIET_SECONDS else ""

    with Live(get_renderable=drawn, console=console, transient=True, refresh_per_second=8):
        yield progress


def draw(progress: Progress) -> RenderableType:
    """`7b ━━━━━╸     prefill, layer 5 of 32`; without a bar where the total is not known."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row: list[RenderableType] = [Text(progress.task)]
    if progress.total:
        done = min(progress.done, progress.total)
        row.append(ProgressBar(total=progress.total, completed=done, width=BAR_COLUMNS))
    grid = Table.grid(padding=(0, 1))
    grid.add_row(*row, Text(_where(progress)))
    return grid


def _where(progress: Progress) -> str:
    layer = f"layer {progress.layer} of {progress.layers}" if progress.layer else ""
    return ", ".join(filter(None, (progress.phase, layer)))


@contextmanager
def reading(wanted: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Give what shows how many of a model's files are read, once a second has passed.

    Args:
        wanted: whether it may be shown at all.
    """
    start, shown = time.monotonic(), ExitStack()
    wanted = wanted and sys.stderr.isatty()
    bar: Bar | None = None

    def read(name: str, done: int, total: int) -> None:
        nonlocal bar
        if not wanted or time.monotonic() - start < QUIET_SECONDS:
            return
        if bar is None:
            from rich.progress import Progress as MadeBar

            from tritter_mem.report.terminal import make_console

            bar = shown.enter_context(MadeBar(console=make_console(sys.stderr), transient=True))
            bar.add_task("reading headers", total=total)
        bar.update(bar.task_ids[0], completed=done, total=total, description=f"read {name}")

    with shown:
        yield read
