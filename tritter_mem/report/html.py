"""Results as one self-contained HTML page, which opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from tritter_mem.report.charts.axes import Chart
from tritter_mem.report.charts.checkpointing_chart import checkpointing_chart
from tritter_mem.report.charts.context_chart import context_chart
from tritter_mem.report.charts.flame_graph import flame_graph
from tritter_mem.report.charts.segment_map import largest_first, segment_map
from tritter_mem.report.charts.timeline_chart import timeline_chart
from tritter_mem.report.differences import notable_differences
from tritter_mem.report.export import to_csv
from tritter_mem.report.page import PlotlyJs, render_page
from tritter_mem.report.table import Table, Tone, verdict_tone
from tritter_mem.report.tables import (
    budget_table,
    comparison_parts_table,
    comparison_table,
    environment_facts,
    holdings_table,
    measured_table,
    phase_table,
    profile_table,
)
from tritter_mem.report.trade_offs import checkpointing_table, ladder_tables
from tritter_mem.report.words import (
    NAME_LIMIT,
    fragmentation_sentence,
    headroom_words,
    name_of,
    notes,
    setup_facts,
    suggestion_options,
    suggestion_sentence,
    verdict_of,
)
from tritter_mem.results.run import Result, Segment, by_module, document
from tritter_mem.results.thinning import thin
from tritter_mem.results.verdict import basis_of, best_kind_with
from tritter_mem.text import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """What stands at the top: whose verdict, one number, and the verdict in words."""

    title: str
    facts: Sequence[str]
    number: str
    words: str
    tone: Tone


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several profiles beside each other."""

    table: Table
    parts: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One subject: a heading, and under it a sentence, points, a table, charts, where there are."""

    title: str
    words: str = ""
    points: Sequence[str] = ()
    table: Table | None = None
    charts: Sequence[Chart] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSection:
    """Everything about one profile, in reading order."""

    name: str
    facts: Sequence[str]
    words: str
    tone: Tone
    notes: Sequence[str]
    suggestions: Sequence[tuple[str, str, bool]]
    parts: Sequence[Part]
    environment: Sequence[tuple[str, str]]
    profile: Table


def render_html(
    results: Sequence[Result], *, plotlyjs: PlotlyJs = "inline", units: str = "GiB"
) -> str:
    """Render one result whole, several compared and then each in a section that opens.

    Args:
        results: one or more finished results.
        plotlyjs: `inline` puts the chart library into the page, `cdn` fetches it, `directory`
            expects `plotly.min.js` beside the page (`page.write_page` writes it).
        units: `GiB` for binary, `GB` for decimal units; exact bytes are in the data.

    Raises:
        UsageError: `plotlyjs` is another word.
    """
    shown = fit_page(results)
    several = len(shown) > 1
    return render_page(
        "report.html.j2",
        plotlyjs=plotlyjs,
        headline=_headline_of_all(shown) if several else _headline(shown[0], units),
        comparison=_compared(shown, units) if several else None,
        sections=[
            _section(result, units, full) for result, full in zip(shown, results, strict=True)
        ],
        made=_made(shown[0]),
        records=document(shown),
        csv=to_csv(shown),
    )


def _headline(result: Result, units: str) -> Headline:
    verdict = result.verdict
    return Headline(
        title=name_of(result),
        facts=setup_facts(result),
        number=headroom_words(verdict.headroom_bytes, units) if verdict else "no verdict",
        words=verdict_of(result, units),
        tone=verdict_tone(result.verdict),
    )


def _headline_of_all(results: Sequence[Result]) -> Headline:
    judged = [result.verdict for result in results if result.verdict]
    fitting = sum(verdict.fits for verdict in judged)
    # Routes are compared to find one that fits: where one does, that is no alarm.
    tone: Tone = "good" if fitting == len(results) else "bad" if judged and not fitting else ""
    return Headline(
        title=f"{len(results)} profiles compared",
        facts=(),
        number=f"{fitting} of {len(results)} fit" if judged else "no verdict",
        words=_why_not_all(len(judged) - fitting, len(results) - len(judged)),
        tone=tone,
    )


def _why_not_all(over: int, unjudged: int) -> str:
    parts = [f"{over} over budget"] if over else []
    parts += [f"{unjudged} without a verdict"] if unjudged else []
    return ", ".join(parts) or "every profile is within its budget"


def _compared(results: Sequence[Result], units: str) -> Comparison:
    return Comparison(
        table=comparison_table(results, units), parts=comparison_parts_table(results, units)
    )


def _section(result: Result, units: str, full: Result) -> ProfileSection:
    suggestions = result.verdict.suggestions if result.verdict else ()
    return ProfileSection(
        name=name_of(result),
        facts=setup_facts(result),
        words=verdict_of(result, units),
        tone=verdict_tone(result.verdict),
        notes=notes(result),
        suggestions=[
            (suggestion_sentence(s, units), suggestion_options(s), s.fits) for s in suggestions
        ],
        parts=_parts(result, units, full),
        environment=_environment(result, units),
        profile=profile_table(result),
    )


def _parts(result: Result, units: str, full: Result) -> list[Part]:
    """What there is to say, subject by subject; what there is no number for is left out.

    `result` is cut to what a page can hold, `full` is not.
    """
    if basis_of(result) is None:
        return []
    found = (
        _of_table(budget_table(result, units)),
        _differences(result, units),
        _of_table(phase_table(result, units), timeline_chart(result, units)),
        _of_table(measured_table(result, units)),
        _holdings(full, units),
        _fragmentation(result, units, full),
        _checkpointing(result, units),
        *(_of_table(table) for table in ladder_tables(result, units)),
        _of_chart("Context length", context_chart(result, units)),
    )
    return [part for part in found if part is not None]


def _of_table(table: Table | None, *charts: Chart | None) -> Part | None:
    """A table with its charts; without it, the charts alone under the first one's title."""
    drawn = [chart for chart in charts if chart is not None]
    if table is None:
        return _of_chart(drawn[0].title, *drawn) if drawn else None
    return Part(title=table.caption, table=table, charts=drawn)


def _of_chart(title: str, *charts: Chart | None) -> Part | None:
    drawn = [chart for chart in charts if chart is not None]
    return Part(title=title, charts=drawn) if drawn else None


def _checkpointing(result: Result, units: str) -> Part | None:
    table = checkpointing_table(result, units)
    return None if table is None else _of_table(table, checkpointing_chart(result, table, units))


def _differences(result: Result, units: str) -> Part | None:
    found = notable_differences(result, units)
    return Part(title="Differences over 2%", points=found) if found else None


def _holdings(full: Result, units: str) -> Part | None:
    """Which modules hold most at the peak, as a graph and as a table that can be searched."""
    kind = best_kind_with(full, "held_at_peak")
    if kind is None:
        return None
    return _of_table(
        holdings_table(full, units, MOST_MODULE_ROWS),
        flame_graph(by_module(full.by_kind()[kind].held_at_peak), units),
    )


def _fragmentation(result: Result, units: str, full: Result) -> Part | None:
    words = fragmentation_sentence(result, units)
    drawn = segment_map(result, units, full)
    if not words and drawn is None:
        return None
    return Part(title="Fragmentation", words=words, charts=[drawn] if drawn else [])


def _environment(result: Result, units: str) -> list[tuple[str, str]]:
    return [
        *environment_facts(result.environment, units),
        ("tritter-mem", printable(result.tool_version)),
        ("Made", printable(result.created)),
        ("Profile hash", printable(result.profile_hash)),
    ]


def _made(result: Result) -> str:
    version, created = (printable(t, NAME_LIMIT) for t in (result.tool_version, result.created))
    return f"{version}, {created}"


MOST_MODULE_ROWS = 400
TIMELINE_NUMBERS = 10_000
BLOCKS = 6_000
HOLDINGS = 6_000
"""What a page holds at most of each, in all its results together."""


def fit_page(results: Sequence[Result]) -> list[Result]:
    """Cut timelines, segments and holdings so that the page stays small; peaks are kept.

    What is cut, in the charts and in the data to download, is whole in the files of `--output`.
    """
    uses = [e for result in results for e in result.by_kind().values()]
    columns = sum(len(e.timeline.columns) for e in uses if e.timeline is not None)
    rows = max(TIMELINE_NUMBERS // max(columns, 1), 20)
    blocks = BLOCKS // max(sum(bool(e.segments) for e in uses), 1)
    holdings = HOLDINGS // max(sum(bool(e.held_at_peak) for e in uses), 1)
    return [cut_result(result, rows, blocks, holdings) for result in results]


def cut_result(result: Result, rows: int, blocks: int, holdings: int) -> Result:
    """The result with no kind of answer above so many timeline rows, blocks and holdings."""
    cut: dict[str, Any] = {
        kind: replace(
            use,
            timeline=use.timeline and thin(use.timeline, rows),
            segments=_with_blocks(use.segments, blocks),
            held_at_peak=use.held_at_peak[:holdings],
        )
        for kind, use in result.by_kind().items()
    }
    return replace(result, **cut)


def _with_blocks(segments: tuple[Segment, ...], most: int) -> tuple[Segment, ...]:
    """All segments, or the largest: as many as have `most` blocks together, one in any case."""
    if sum(len(segment.blocks) for segment in segments) <= most:
        return segments
    ordered = largest_first(segments)
    blocks = accumulate(len(segment.blocks) for segment in ordered)
    return tuple(ordered[: max(sum(count <= most for count in blocks), 1)])
