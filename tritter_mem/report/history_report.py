"""The local history, commit by commit: tables in a terminal, or a page with a chart a profile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from tritter_mem.report.charts.axes import Chart, Json, Scale, plotly_text
from tritter_mem.report.page import PlotlyJs, render_page
from tritter_mem.report.table import BLANK, Bars, Cell, Column, Row, Table, bytes_cell
from tritter_mem.report.terminal import render_table
from tritter_mem.report.words import KIND_LABELS, MISSING, NAME_LIMIT, signed_bytes
from tritter_mem.results.history import Remembered
from tritter_mem.text import printable
from tritter_mem.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

Series = tuple[str, str, str, str]
"""Profile, hash of its content, kind of number, card."""
SERIES_COLUMNS = (
    Column(label="when", numeric=False),
    Column(label="commit", numeric=False),
    Column(label="torch", numeric=False, wide=True),
    Column(label="allocated"),
    Column(label="change"),
    Column(label="reserved", wide=True),
)
COLORS = {
    "planned": "--soft",
    "simulated": "--accent",
    "rehearsed": "--c-workspace",
    "measured": "--c-kv-cache",
}
DASHES = ("solid", "dash", "dot", "dashdot")


def render_history(history: Iterable[Remembered], console: Console, units: str = "GiB") -> None:
    """Draw every series."""
    for table in history_tables(history, units):
        render_table(table, console)


def series_of(history: Iterable[Remembered]) -> dict[Series, list[Remembered]]:
    """What can be compared, oldest first; a run that changed nothing is left out.

    A profile whose content changed is another series.
    """
    found: defaultdict[Series, list[Remembered]] = defaultdict(list)
    for one in history:
        runs = found[one.profile, one.profile_hash, one.kind, one.gpu]
        if not runs or _figures(runs[-1]) != _figures(one):
            runs.append(one)
    return dict(sorted(found.items()))


def _figures(one: Remembered) -> tuple[object, ...]:
    return one.commit, one.torch, one.allocated_peak_bytes, one.reserved_peak_bytes


def history_tables(history: Iterable[Remembered], units: str) -> list[Table]:
    """A table for each series, one row a run that changed something."""
    found = series_of(history)
    names = [(profile, kind, gpu) for profile, _, kind, gpu in found]
    return [
        _series_table(key, runs, names.count((key[0], *key[2:])) > 1, units)
        for key, runs in found.items()
    ]


def _series_table(key: Series, runs: Sequence[Remembered], ambiguous: bool, units: str) -> Table:
    profile, content, kind, gpu = (printable(part, NAME_LIMIT) for part in key)
    content_words = f", content {content[:8]}" if ambiguous else ""
    most = max(run.allocated_peak_bytes for run in runs)
    befores = [None, *runs][: len(runs)]
    return Table(
        caption=f"{profile} ({kind}, {gpu}{content_words})",
        columns=SERIES_COLUMNS,
        rows=[_series_row(run, before, units) for run, before in zip(runs, befores, strict=True)],
        bars=Bars(label="allocated peak", full_bytes=max(most, 1)),
    )


def _series_row(run: Remembered, before: Remembered | None, units: str) -> Row:
    grown = run.allocated_peak_bytes - before.allocated_peak_bytes if before else 0
    return Row(
        cells=(
            Cell(text=printable(run.created[:16].replace("T", " "))),
            Cell(text=commit_name(run)),
            Cell(text=printable(run.torch or MISSING, NAME_LIMIT)),
            bytes_cell(run.allocated_peak_bytes, units),
            Cell(text=signed_bytes(grown, units), value=grown) if grown else BLANK,
            bytes_cell(run.reserved_peak_bytes, units),
        ),
        bar_bytes=run.allocated_peak_bytes,
    )


def commit_name(run: Remembered) -> str:
    """Ten digits, and `+` where files differed from it."""
    if run.commit is None:
        return MISSING
    commit, dirty, _ = run.commit.partition("-dirty")
    return printable(commit[:10] + ("+" if dirty else ""))


def render_history_html(
    history: Sequence[Remembered], *, plotlyjs: PlotlyJs = "inline", units: str = "GiB"
) -> str:
    """Render the history, oldest first, whole.

    Args:
        history: what `read_history` gives.
        plotlyjs: where the chart library comes from, as in `page.render_page`.
        units: `GiB` or `GB`.
    """
    profiles: defaultdict[str, list[Remembered]] = defaultdict(list)
    for one in history:
        profiles[one.profile].append(one)
    return render_page(
        "history.html.j2",
        plotlyjs=plotlyjs,
        runs=len({(one.created, one.profile) for one in history}),
        span=_span(history),
        charts=[
            (printable(name, NAME_LIMIT), history_chart(runs, units))
            for name, runs in sorted(profiles.items())
        ],
        records=[asdict(one) for one in history],
    )


def _span(history: Sequence[Remembered]) -> str:
    days = sorted({printable(one.created, NAME_LIMIT)[:10] for one in history})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


def history_chart(runs: Sequence[Remembered], units: str) -> Chart:
    """One profile's allocated peaks, a line for each kind of number and card."""
    scale = Scale.of(max(one.allocated_peak_bytes for one in runs), units)
    moments = list(dict.fromkeys((one.created, commit_name(one)) for one in runs))
    lines: defaultdict[tuple[str, str], list[Remembered]] = defaultdict(list)
    for one in runs:
        lines[one.kind, one.gpu].append(one)
    cards = list(dict.fromkeys(gpu for _, gpu in lines))
    name = printable(runs[0].profile, NAME_LIMIT)
    change = _change_words(runs, units)
    return Chart(
        title=change,
        description=f"Allocated peaks of {name} over {len(moments)} runs. {change}",
        figure={
            "data": [
                _line(same, moments, DASHES[cards.index(gpu) % len(DASHES)], scale, units)
                for (_, gpu), same in lines.items()
            ],
            "layout": {"xaxis": _axis(moments), "yaxis": scale.axis(), "hovermode": "closest"},
        },
        table=_runs_table(runs, name, units),
        height=300,
        legend=[(COLORS[k], KIND_LABELS[k]) for k in KIND_LABELS if any(r.kind == k for r in runs)],
    )


def _change_words(runs: Sequence[Remembered], units: str) -> str:
    """How the last run differs from the first of its kind and card."""
    last = runs[-1]
    first = next(one for one in runs if (one.kind, one.gpu) == (last.kind, last.gpu))
    change = last.allocated_peak_bytes - first.allocated_peak_bytes
    now = format_bytes(last.allocated_peak_bytes, units)
    return f"{last.kind.capitalize()} now {now}, {signed_bytes(change, units)} since the first."


def _axis(moments: Sequence[tuple[str, str]]) -> Json:
    """Runs side by side; as many commits named as there is room for."""
    step = -(-len(moments) // 8)
    shown = range(0, len(moments), step)
    return {
        "tickvals": list(shown),
        "ticktext": [plotly_text(moments[at][1]) for at in shown],
        "range": [-0.5, max(len(moments) - 0.5, 0.5)],
        "fixedrange": True,
    }


def _line(
    runs: Sequence[Remembered], moments: Sequence[tuple[str, str]], dash: str, scale: Scale,
    units: str,
) -> Json:  # fmt: skip
    at = {moment: position for position, moment in enumerate(moments)}
    color = COLORS[runs[0].kind]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plotly_text(f"{runs[0].kind}, {runs[0].gpu}", NAME_LIMIT),
        "x": [at[one.created, commit_name(one)] for one in runs],
        "y": [scale.of_bytes(one.allocated_peak_bytes) for one in runs],
        "line": {"color": color, "width": 2, "dash": dash, "shape": "hv"},
        "marker": {"color": color, "size": 6},
        "customdata": [plotly_text(_point_words(one, units)) for one in runs],
        "hovertemplate": "%{fullData.name}: %{customdata}<extra></extra>",
    }


def _point_words(one: Remembered, units: str) -> str:
    size = format_bytes(one.allocated_peak_bytes, units)
    return f"{size}, {commit_name(one)}, {one.created}"


def _runs_table(runs: Sequence[Remembered], caption: str, units: str) -> Table:
    words = ("Made", "Commit", "Kind", "Card", "PyTorch")
    return Table(
        caption=caption,
        columns=[
            *(Column(label=word, numeric=False) for word in words),
            Column(label="Allocated"),
            Column(label="Reserved"),
        ],
        rows=[_run_row(one, units) for one in reversed(runs)],
    )


def _run_row(one: Remembered, units: str) -> Row:
    texts = (one.created, commit_name(one), one.kind, one.gpu, one.torch or MISSING)
    return Row(
        cells=(
            *(Cell(text=printable(text, NAME_LIMIT)) for text in texts),
            bytes_cell(one.allocated_peak_bytes, units),
            bytes_cell(one.reserved_peak_bytes, units),
        )
    )
