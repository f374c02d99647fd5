"""A rehearsal as tables in a terminal and as one HTML page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tritter_mem.report.page import PlotlyJs, render_page
from tritter_mem.report.replay_report import device_views
from tritter_mem.report.table import BLANK, Bars, Cell, Column, Row, Table, Tone, bytes_cell
from tritter_mem.report.words import NAME_LIMIT
from tritter_mem.results.rehearsal import EngineFigures, RankUse, Rehearsal
from tritter_mem.results.replay import Replay
from tritter_mem.text import printable
from tritter_mem.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

UNITS = "GiB"
COMMAND_LIMIT = 200
SHOWN_LINES = 20


def render_rehearsal(done: Rehearsal, console: Console) -> None:
    """Draw what was rehearsed: whether it can be trusted, the verdict, ranks, what was not counted.

    Args:
        done: a finished rehearsal.
        console: where to draw.
    """
    from tritter_mem.report.terminal import STYLES, render_line, render_list, render_table

    if not done.trust.trusted:
        render_line(console, untrusted_sentence(done), STYLES["warn"])
    render_line(console, " · ".join(facts(done)), "bold")
    render_line(console, verdict_words(done), STYLES[tone_of(done)])
    if done.ranks:
        render_table(ranks_table(done), console)
    if done.engine is not None:
        render_table(engine_table(done.engine), console)
    for heading, lines in lists(done):
        render_list(console, heading, lines)


def facts(done: Rehearsal) -> list[str]:
    """The command, the machine, and the versions that the figures are for."""
    command = printable(shlex.join(done.command.argv), COMMAND_LIMIT)
    many = f"{done.devices} of " if done.devices > 1 else ""
    machine = f"{many}{done.gpu} ({format_bytes(done.total_bytes, UNITS)})"
    versions = [f"{name} {printable(found, NAME_LIMIT)}" for name, found in done.versions.items()
                if name not in ("python", "triton")]  # fmt: skip
    return [command, machine, *versions]


def untrusted_sentence(done: Rehearsal) -> str:
    """Why the figures cannot be trusted, in a line."""
    count = len(done.trust.values_decided_shapes)
    why = [*done.trust.problems]
    if count:
        lines = "a line" if count == 1 else f"{count} lines"
        why.append(
            f"values that no kernel computed decided a shape or a branch at {lines}, see below"
        )
    accepted = "accepted" if done.accepted else "--accept-untrusted lets it count"
    return f"cannot be trusted ({accepted}): {'; '.join(why)}"


def verdict_words(done: Rehearsal) -> str:
    """How it ended, in a sentence."""
    if done.interrupted:
        return "interrupted"
    if done.out_of_memory:
        return _refused(done)
    if done.over_host_limit:
        return (
            "ended: its processes held more of the host's memory than --host-limit allows; make "
            'the model on the device, or on `meta` and then `to_empty(device="cuda")`: what is '
            "made on the host takes its size there"
        )
    if done.failed:
        code = done.command.exit_code
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"the command failed {how}"
    if done.rehearsed is None:
        return "nothing used a device"
    peak = format_bytes(done.rehearsed.device_peak_bytes, UNITS)
    return _served(done, f"the fullest process takes {peak}")


def _served(done: Rehearsal, takes: str) -> str:
    """Every request was served: a verdict if the run can be trusted."""
    if done.verdict is None:
        return f"{takes} (rehearsed), if the run is right"
    spare = format_bytes(done.verdict.headroom_bytes, UNITS)
    caught = " (it ran out of memory and continued)" if done.refusals else ""
    return f"fits: {takes}, {spare} to spare (rehearsed){caught}"


def _refused(done: Rehearsal) -> str:
    last = done.refusals[-1]
    size = format_bytes(last.requested_bytes, UNITS)
    text = printable(last.text or f"tried to allocate {size}", 1000)
    return f"out of memory at {printable(last.where, 300)}: {text}"


def tone_of(done: Rehearsal) -> Tone:
    """How the verdict is coloured."""
    if done.verdict is None:
        return "warn"
    return "good" if done.verdict.fits else "bad"


def ranks_table(done: Rehearsal) -> Table:
    """A row for each process and device that it used."""
    return Table(
        caption="Peaks of each process",
        columns=(
            Column(label="Process", numeric=False),
            Column(label="Device", numeric=False),
            Column(label="Allocated peak"),
            Column(label="Reserved peak"),
            Column(label="Device peak"),
            Column(label="Active peak", wide=True),
            Column(label="Allocated at the end", wide=True),
            Column(label="Retries", wide=True),
        ),
        rows=[_row(use) for use in done.ranks],
        bars=Bars(label="of the device", full_bytes=done.total_bytes, limit_bytes=None),
    )


def _row(use: RankUse) -> Row:
    name = f"rank {use.rank}" if use.rank is not None else f"process {use.process}"
    return Row(
        cells=(
            Cell(text=name),
            Cell(text=f"cuda:{use.device}"),
            bytes_cell(use.allocated_peak_bytes, UNITS),
            bytes_cell(use.reserved_peak_bytes, UNITS),
            bytes_cell(use.device_peak_bytes, UNITS),
            bytes_cell(use.active_peak_bytes, UNITS),
            bytes_cell(use.allocated_end_bytes, UNITS),
            Cell(text=f"{use.retries:,}", value=use.retries) if use.retries else BLANK,
        ),
        bar_bytes=use.device_peak_bytes,
    )


_ENGINE_ROWS = (
    ("Weights", "weights_bytes"),
    ("Activations of the largest batch", "activation_peak_bytes"),
    ("CUDA graphs", "graphs_bytes"),
    ("KV cache", "kv_cache_bytes"),
    ("KV cache, tokens", "kv_cache_tokens"),
    ("Longest request, tokens", "context_tokens"),
    ("Such requests at once", "max_concurrency"),
)


def engine_table(engine: EngineFigures) -> Table:
    """What a serving engine printed of itself."""
    return Table(
        caption=f"What {engine.name} says of itself",
        columns=(Column(label="Figure", numeric=False), Column(label="Value")),
        rows=[
            Row(cells=(Cell(text=words), _figure(name, value)))
            for words, name in _ENGINE_ROWS
            if (value := getattr(engine, name)) is not None
        ],
    )


def _figure(name: str, value: float) -> Cell:
    if name.endswith("_bytes"):
        return bytes_cell(int(value), UNITS)
    return Cell(text=f"{value:,}", value=value)


def lists(done: Rehearsal) -> list[tuple[str, list[str]]]:
    """What a reader must know of the figures, under headings."""
    trust = done.trust
    found = [
        ("Decided by values that no kernel computed", trust.values_decided_shapes),
        ("Decided by assumed values (balanced routing, finite numbers)", trust.assumed),
        (
            "Values that no kernel computed left PyTorch here and cannot be followed: check that "
            "they decide no shape and no branch",
            trust.not_followed,
        ),
        ("CUDA functions that have no stand-in and failed", trust.stubs_called),
        ("Not counted", trust.uncounted),
    ]
    return [(heading, _shown(lines)) for heading, lines in found if lines]


def _shown(lines: Sequence[str]) -> list[str]:
    shown = [printable(line, 300) for line in lines[:SHOWN_LINES]]
    more = len(lines) - len(shown)
    return [*shown, f"and {more:,} more"] if more > 0 else shown


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryView:
    """One process's history, replayed, as a page of `replay` draws it."""

    name: str
    devices: Sequence[object]


def render_rehearsal_html(done: Rehearsal, replays: Sequence[tuple[str, Replay]], *,
                          plotlyjs: PlotlyJs = "inline") -> str:  # fmt: skip
    """Render one page that opens offline.

    Args:
        done: a finished rehearsal.
        replays: the name of a process and its own history, replayed with `segment_maps`.
        plotlyjs: where the chart library comes from.
    """
    return render_page(
        "rehearsal.html.j2",
        plotlyjs=plotlyjs,
        name=printable(shlex.join(done.command.argv), NAME_LIMIT),
        made=f"{done.tool_version}, {done.created}",
        untrusted="" if done.trust.trusted else untrusted_sentence(done),
        tone=tone_of(done),
        facts=facts(done),
        number=_number(done),
        words=verdict_words(done),
        table=ranks_table(done) if done.ranks else None,
        engine=engine_table(done.engine) if done.engine is not None else None,
        lists=lists(done),
        histories=[
            HistoryView(name=name, devices=device_views(replay)) for name, replay in replays
        ],
        record=done.to_dict(),
    )


def _number(done: Rehearsal) -> str:
    if done.verdict is None:
        return "no verdict"
    return "fits" if done.verdict.fits else "does not fit"
