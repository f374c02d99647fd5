"""The local history, commit by commit: tables in a terminal, or a page with one chart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from tritter_mem.report.charts.axes import Chart, Json, Scale, plotly_text
from tritter_mem.report.page import PlotlyJs, render_page
from tritter_mem.report.table import BLANK, Bars, Cell, Column, Row, Table, bytes_cell
from tritter_mem.report.terminal import render_table
from tritter_mem.report.words import MISSING, NAME_LIMIT, percent, signed_bytes
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
COLORS = (
    "--c-weights",
    "--c-activations",
    "--c-gradients",
    "--c-logits",
    "--c-embeddings",
    "--c-kv-cache",
    "--c-workspace",
    "--c-vision",
)
OTHERS = "--c-cached"
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
    """Render the history, oldest first, whole: one chart of all profiles, and the runs of each.

    Args:
        history: what `read_history` gives.
        plotlyjs: where the chart library comes from, as in `page.render_page`.
        units: `GiB` or `GB`.
    """
    profiles: defaultdict[str, list[Remembered]] = defaultdict(list)
    for one in history:
        profiles[one.profile].append(one)
    runs = len({(one.created, one.profile) for one in history})
    return render_page(
        "history.html.j2",
        plotlyjs=plotlyjs,
        counted=f"{_counted(runs, 'run')} of {_counted(len(profiles), 'profile')}",
        span=_span(history),
        number=_most_changed(history),
        chart=history_chart(history, units) if history else None,
        runs=[_runs_table(runs, name, units) for name, runs in sorted(profiles.items())],
        records=[asdict(one) for one in history],
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _span(history: Sequence[Remembered]) -> str:
    days = sorted({printable(one.created, NAME_LIMIT)[:10] for one in history})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


Line = tuple[str, str, str]
"""Profile, kind of number, card."""


def _lines(history: Iterable[Remembered]) -> dict[Line, list[Remembered]]:
    """The runs of each line, oldest first."""
    found: defaultdict[Line, list[Remembered]] = defaultdict(list)
    for one in history:
        found[one.profile, one.kind, one.gpu].append(one)
    return found


def _change(runs: Sequence[Remembered]) -> float:
    """How much more the last run allocates than the first; 0.1 is a tenth more."""
    first = runs[0].allocated_peak_bytes
    return runs[-1].allocated_peak_bytes / first - 1 if first else 0.0


def _most_changed(history: Sequence[Remembered]) -> str:
    lines = _lines(history)
    if not lines:
        return "no runs"
    line = max(lines, key=lambda line: abs(_change(lines[line])))
    change = _change(lines[line])
    if not change:
        return "no change"
    return f"{printable(line[0], NAME_LIMIT)}: {percent(change)}"


def history_chart(history: Sequence[Remembered], units: str) -> Chart:
    """Allocated peaks at each commit: of one profile in bytes, of several as shares of their first.

    Shares, because profiles differ by more than any of them changes.
    """
    lines = _lines(history)
    # Profiles differ in colour; kinds of number and cards in the dashes of their lines.
    commits = list(dict.fromkeys(map(_moment, history)))
    colors = _colors(lines)
    scale = None
    if len({profile for profile, *_ in lines}) == 1:
        scale = Scale.of(max(one.allocated_peak_bytes for one in history), units)
    ways = list(dict.fromkeys(line[1:] for line in lines))
    title = "In bytes" if scale else "As a share of each profile's first run"
    return Chart(
        title=title,
        description=f"Allocated peaks of {_counted(len(lines), 'line')} over "
        f"{_counted(len(commits), 'commit')}. Most changed: {_most_changed(history)}.",
        figure={
            "data": [
                _line(runs, commits, scale, units)
                | {
                    "line": {
                        "color": colors[line[0]],
                        "width": 2,
                        "shape": "hv",
                        "dash": DASHES[ways.index(line[1:]) % len(DASHES)],
                    },
                    "marker": {"color": colors[line[0]], "size": 6},
                }
                for line, runs in lines.items()
            ],
            "layout": {
                "xaxis": _axis(commits),
                "yaxis": _ordinate(lines, scale),
                "hovermode": "closest",
            },
        },
        table=_lines_table(lines, units),
        height=360,
        legend=_legend(colors),
    )


def _moment(one: Remembered) -> str:
    """The commit that a run was made at, in few digits; without one the minute."""
    if one.commit is None:
        return printable(one.created[5:16].replace("T", " "))
    return commit_name(one).removesuffix("+")[:8] + ("+" if "-dirty" in one.commit else "")


def _colors(lines: Mapping[Line, Sequence[Remembered]]) -> dict[str, str]:
    """A colour for each profile; of very many those that changed most have one of their own."""
    changes: defaultdict[str, float] = defaultdict(float)
    for (profile, *_), runs in lines.items():
        changes[profile] = max(changes[profile], abs(_change(runs)))
    if len(changes) <= len(COLORS):
        return dict(zip(changes, COLORS, strict=False))
    most = sorted(changes, key=lambda profile: -changes[profile])[: len(COLORS)]
    return dict.fromkeys(changes, OTHERS) | dict(zip(most, COLORS, strict=True))


def _legend(colors: Mapping[str, str]) -> list[tuple[str, str]]:
    named = [(c, printable(name, NAME_LIMIT)) for name, c in colors.items() if c != OTHERS]
    others = sum(c == OTHERS for c in colors.values())
    return [*named, *([(OTHERS, f"{others} that changed less")] if others else [])]


def _axis(commits: Sequence[str]) -> Json:
    """Commits side by side; as many named as there is room for."""
    shown = range(0, len(commits), -(-len(commits) // 4))
    return {
        "title": {"text": "commit"},
        "zeroline": False,
        "tickvals": list(shown),
        "ticktext": [plotly_text(commits[at], 11) for at in shown],
        "tickangle": 0,
        "range": [-0.3, max(len(commits) - 0.7, 0.3)],
        "fixedrange": True,
    }


def _ordinate(lines: Mapping[Line, Sequence[Remembered]], scale: Scale | None) -> Json:
    if scale is not None:
        return scale.axis()
    shares = [_share(one, runs) for runs in lines.values() for one in runs]
    room = max((max(shares) - min(shares)) * 0.1, 0.01)
    return {
        "title": {"text": "of the first run", "standoff": 6},
        "range": [min(shares) - room, max(shares) + room],
        "tickformat": ".0%" if max(shares) - min(shares) > 0.05 else ".1%",
        "fixedrange": True,
    }


def _share(one: Remembered, runs: Sequence[Remembered]) -> float:
    first = runs[0].allocated_peak_bytes
    return one.allocated_peak_bytes / first if first else 1.0


def _line(
    runs: Sequence[Remembered], commits: Sequence[str], scale: Scale | None, units: str
) -> Json:
    """One point a commit: its last run."""
    latest = {commits.index(_moment(one)): one for one in runs}
    points = [latest[at] for at in sorted(latest)]
    name = f"{runs[0].profile}, {runs[0].kind}, {runs[0].gpu}"
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plotly_text(name, NAME_LIMIT),
        "x": sorted(latest),
        "y": [
            scale.of_bytes(one.allocated_peak_bytes) if scale else round(_share(one, runs), 5)
            for one in points
        ],
        "customdata": [plotly_text(_point_words(one, units)) for one in points],
        "hovertemplate": "%{fullData.name}: %{customdata}<extra></extra>",
    }


def _point_words(one: Remembered, units: str) -> str:
    size = format_bytes(one.allocated_peak_bytes, units)
    return f"{size}, {commit_name(one)}, {one.created}"


def _lines_table(lines: Mapping[Line, Sequence[Remembered]], units: str) -> Table:
    """One row a line: its first and its last run, most changed first."""
    ordered = sorted(lines, key=lambda line: -abs(_change(lines[line])))
    words = ("Profile", "Kind", "Card")
    return Table(
        caption="First and last runs",
        columns=[
            *(Column(label=word, numeric=False) for word in words),
            *(Column(label=word) for word in ("Runs", "First", "Last", "Change")),
        ],
        rows=[_line_row(line, lines[line], units) for line in ordered],
    )


def _line_row(line: Line, runs: Sequence[Remembered], units: str) -> Row:
    first, last = runs[0].allocated_peak_bytes, runs[-1].allocated_peak_bytes
    change = _change(runs)
    return Row(
        cells=(
            *(Cell(text=printable(text, NAME_LIMIT)) for text in line),
            Cell(text=f"{len(runs):,}", value=len(runs)),
            bytes_cell(first, units),
            bytes_cell(last, units),
            Cell(text=percent(change), value=change, tone="warn" if change > 0 else ""),
        )
    )


def _runs_table(runs: Sequence[Remembered], caption: str, units: str) -> Table:
    words = ("Made", "Commit", "Kind", "Card", "PyTorch")
    return Table(
        caption=printable(caption, NAME_LIMIT),
        columns=[
            *(Column(label=word, numeric=False) for word in words),
            Column(label="Allocated"),
            Column(label="Reserved"),
        ],
        rows=[_run_row(one, units) for one in reversed(runs)],
    )


def _run_row(one: Remembered, units: str) -> Row:
    texts = (one.created[:16].replace("T", " "), commit_name(one), one.kind, one.gpu,
             one.torch or MISSING)  # fmt: skip
    return Row(
        cells=(
            *(Cell(text=printable(text, NAME_LIMIT)) for text in texts),
            bytes_cell(one.allocated_peak_bytes, units),
            bytes_cell(one.reserved_peak_bytes, units),
        )
    )
