"""Results as one self-contained HTML page, which opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tritter_mem.report.chart import Chart
from tritter_mem.report.charts import budget_chart, comparison_chart, waterfall_chart
from tritter_mem.report.checkpointing import checkpointing_table
from tritter_mem.report.data import to_csv
from tritter_mem.report.differences import notable_differences
from tritter_mem.report.page import PlotlyJs, render_page
from tritter_mem.report.table import Table, Tone
from tritter_mem.report.tables import (
    basis_of,
    budget_table,
    comparison_table,
    environment_facts,
    phase_table,
    profile_table,
)
from tritter_mem.report.timeline import thin_result
from tritter_mem.report.timeline_chart import timeline_chart
from tritter_mem.report.words import (
    NAME_LIMIT,
    fragmentation_sentence,
    headroom_words,
    name_of,
    notes,
    printable,
    setup_facts,
    suggestion_options,
    suggestion_sentence,
    verdict_sentence,
)
from tritter_mem.results import Result

# Numbers of all timelines together; a page holds them twice, as data and as charts, in about 20
# bytes, and stays under 6 MB with 20 profiles.
TIMELINE_NUMBERS = 10_000


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
    chart: Chart


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Everything about one profile, in reading order; `parts` are tables with their charts."""

    name: str
    facts: Sequence[str]
    words: str
    tone: Tone
    notes: Sequence[str]
    suggestions: Sequence[tuple[str, str, bool]]
    parts: Sequence[tuple[Table, Sequence[Chart]]]
    differences: Sequence[str]
    fragmentation: str
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
        UsageError: `plotlyjs` is none of the three.
    """
    rows = _timeline_rows(results)
    shown = [thin_result(result, rows) for result in results]
    several = len(shown) > 1
    return render_page(
        "report.html.j2",
        plotlyjs=plotlyjs,
        headline=_headline_of_all(shown) if several else _headline(shown[0], units),
        comparison=_compared(shown, units) if several else None,
        sections=[_section(result, units) for result in shown],
        made=_made(shown[0]),
        records=_records(shown),
        csv=to_csv(shown),
    )


def _timeline_rows(results: Sequence[Result]) -> int:
    """How many rows each timeline may have, so that the page stays small."""
    columns = sum(
        len(estimate.timeline.columns)
        for result in results
        for estimate in result.estimates().values()
        if estimate.timeline is not None
    )
    return max(TIMELINE_NUMBERS // max(columns, 1), 20)


def _headline(result: Result, units: str) -> Headline:
    verdict = result.verdict
    return Headline(
        title=name_of(result),
        facts=setup_facts(result),
        number=headroom_words(verdict.headroom_bytes, units) if verdict else "no verdict",
        words=verdict_sentence(verdict, units),
        tone=_tone(result),
    )


def _headline_of_all(results: Sequence[Result]) -> Headline:
    judged = [result.verdict for result in results if result.verdict]
    fitting = sum(verdict.fits for verdict in judged)
    tone: Tone = "good" if judged and fitting == len(results) else "bad" if judged else ""
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


def _tone(result: Result) -> Tone:
    if result.verdict is None:
        return ""
    return "good" if result.verdict.fits else "bad"


def _compared(results: Sequence[Result], units: str) -> Comparison:
    return Comparison(
        table=comparison_table(results, units), chart=comparison_chart(results, units)
    )


def _section(result: Result, units: str) -> Section:
    basis = basis_of(result)
    found = result.estimates()[basis].fragmentation if basis else None
    suggestions = result.verdict.suggestions if result.verdict else ()
    return Section(
        name=name_of(result),
        facts=setup_facts(result),
        words=verdict_sentence(result.verdict, units),
        tone=_tone(result),
        notes=notes(result),
        suggestions=[
            (suggestion_sentence(s, units), suggestion_options(s), s.fits) for s in suggestions
        ],
        parts=_parts(result, units),
        differences=notable_differences(result, units),
        fragmentation=fragmentation_sentence(found, units) if found else "",
        environment=_environment(result, units),
        profile=profile_table(result),
    )


def _parts(result: Result, units: str) -> list[tuple[Table, list[Chart]]]:
    """Tables with the charts that go with them; what there is no number for is left out."""
    if basis_of(result) is None:
        return []
    waterfall, timeline = waterfall_chart(result, units), timeline_chart(result, units)
    phases = phase_table(result, units)
    budget = [budget_chart(result, units), *([waterfall] if waterfall else [])]
    times = [timeline] if timeline else []
    policies = checkpointing_table(result, units)
    more: list[tuple[Table, list[Chart]]] = [] if policies is None else [(policies, [])]
    if phases is None:
        return [(budget_table(result, units), budget + times), *more]
    return [(budget_table(result, units), budget), (phases, times), *more]


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


def _records(results: Sequence[Result]) -> Any:
    records = [result.to_dict() for result in results]
    return records[0] if len(records) == 1 else records
