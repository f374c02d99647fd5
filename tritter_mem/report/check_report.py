"""A check in words: in a terminal, as Markdown, as annotations of GitHub, as JUnit's XML."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree as ET

from tritter_mem.report.table import Cell, Column, Row, Table, Tone, bytes_cell
from tritter_mem.report.terminal import STYLES, render_line, render_list, render_table
from tritter_mem.report.words import (
    NAME_LIMIT,
    OUTSIDE,
    TEXT_LIMIT,
    label,
    moment_words,
    percent,
    signed_bytes,
)
from tritter_mem.text import printable
from tritter_mem.units import MiB, format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from tritter_mem.results.check import CaseOutcome, CheckReport, Reason, SizeChange, Status

REASONS_OF_A_GROUP = 3
MARKDOWN_REASONS_OF_A_GROUP = 5
COLUMNS = (
    Column(label="profile", numeric=False),
    Column(label="kind", numeric=False, wide=True),
    Column(label="GPU", numeric=False, wide=True),
    Column(label="baseline"),
    Column(label="now"),
    Column(label="change"),
    Column(label="verdict", numeric=False),
)
TONES: dict[Status, Tone] = {
    "ok": "",
    "gain": "good",
    "regression": "bad",
    "no entry": "warn",
    "other torch": "warn",
    "other profile": "warn",
    "failed": "bad",
    "added": "good",
    "updated": "warn",
}
TIGHTEN = "smaller than the baseline: tighten it, so that it cannot grow back unnoticed: "
UPDATE = "tritter-mem check --update-baseline"


def name_of_outcome(outcome: CaseOutcome) -> str:
    """What was profiled, how and for what: `1b (simulated, rtx-5080, torch 2.13.0)`."""
    torch = f"torch {outcome.torch}" if outcome.torch else ""
    place = ", ".join(filter(None, (outcome.kind, outcome.gpu, torch)))
    return f"{printable(outcome.label, NAME_LIMIT)} ({printable(place, NAME_LIMIT)})"


def headline(outcome: CaseOutcome, units: str = "GiB") -> str:
    """What came out, in one sentence."""
    change = outcome.gated
    if change is None:
        return f"{outcome.status}: {printable(outcome.message, TEXT_LIMIT)}"
    if outcome.status == "added":
        return f"added: {outcome.gate} peak {format_bytes(change.now_bytes, units)}"
    text = f"{outcome.status}: {outcome.gate} peak {_from_to(change, units)}"
    if outcome.status == "regression":
        text += f", tolerated {format_bytes(outcome.tolerated_bytes, units)}"
    if outcome.status == "gain":
        text += f"; {TIGHTEN}{UPDATE}"
    return f"{text}; {printable(outcome.message, TEXT_LIMIT)}" if outcome.message else text


def _from_to(change: SizeChange, units: str) -> str:
    """`1.80 GiB → 2.15 GiB, +358.0 MiB (+19.4%)`."""
    before, now = (format_bytes(n, units) for n in (change.baseline_bytes, change.now_bytes))
    if not change.growth_bytes:
        return f"{now}, equal"
    ratio = f" ({percent(change.ratio)})" if change.baseline_bytes else ""
    return f"{before} → {now}, {signed_bytes(change.growth_bytes, units)}{ratio}"


def details(outcome: CaseOutcome, units: str = "GiB", most: int = REASONS_OF_A_GROUP) -> list[str]:
    """What grew or shrank, the largest of each group first, and what else there is to know."""
    lines: list[str] = []
    for group in ("component", "phase", "module"):
        found = [reason for reason in outcome.reasons if reason.group == group]
        lines += [_reason_words(reason, units) for reason in found[:most]]
        if len(found) > most:
            lines.append(f"and {len(found) - most} more {group}s that changed less")
    if outcome.moved is not None:
        before, now = map(moment_words, (outcome.moved.baseline, outcome.moved.now))
        lines.append(f"the peak was at {before}, is at {now}")
    other = informing(outcome)
    if other is not None and other.growth_bytes and outcome.status != "added":
        lines.append(f"{_other_gate(outcome)} peak {_from_to(other, units)}; it does not decide")
    return lines


def _reason_words(reason: Reason, units: str) -> str:
    name = printable(reason.name, NAME_LIMIT)
    if reason.group == "component":
        name = label(reason.name)
    elif reason.group == "module":
        name = name or OUTSIDE
        name += f", {reason.count} of them" if reason.count > 1 else ""
        name += f" ({label(reason.component)})"
    return f"{reason.group} {name}: {_from_to(reason.change, units)}"


def _whole_text(outcome: CaseOutcome, units: str) -> str:
    return "\n".join([headline(outcome, units), *details(outcome, units)])


def informing(outcome: CaseOutcome) -> SizeChange | None:
    """The change of the peak that does not decide."""
    return outcome.reserved if outcome.gate == "allocated" else outcome.allocated


def _other_gate(outcome: CaseOutcome) -> str:
    return "reserved" if outcome.gate == "allocated" else "allocated"


def notable(outcome: CaseOutcome) -> bool:
    """Whether there is more to say than that all is as it was."""
    if outcome.status != "ok":
        return True
    other = informing(outcome)
    return other is not None and abs(other.growth_bytes) > outcome.tolerated_bytes > 0


def counts(report: CheckReport) -> str:
    """`2 regressions, 3 ok`."""
    found = Counter(outcome.status for outcome in report.outcomes)
    return ", ".join(_count(found[status], status) for status in reversed(TONES) if found[status])


def _count(number: int, status: Status) -> str:
    plural = number > 1 and status in ("regression", "gain")
    return f"{number} {status}{'s' if plural else ''}"


def check_table(report: CheckReport, units: str) -> Table:
    """One row an outcome: the peak that decides, in the baseline and now."""
    caption = f"Memory against {printable(report.baseline, NAME_LIMIT)}"
    rows = [_row(outcome, units) for outcome in report.outcomes]
    return Table(caption=caption, columns=COLUMNS, rows=rows)


def _row(outcome: CaseOutcome, units: str) -> Row:
    change, tone = outcome.gated, TONES[outcome.status]
    added = outcome.status == "added"
    names = (outcome.label, outcome.kind, outcome.gpu)
    return Row(
        cells=(
            *(Cell(text=printable(name, NAME_LIMIT)) for name in names),
            bytes_cell(None if change is None or added else change.baseline_bytes, units),
            bytes_cell(None if change is None else change.now_bytes, units),
            Cell(text="" if change is None or added else growth_words(change, units)),
            Cell(text=outcome.status, tone=tone),
        )
    )


def growth_words(change: SizeChange, units: str) -> str:
    """`+192.0 MiB`, or that nothing changed."""
    return signed_bytes(change.growth_bytes, units) if change.growth_bytes else "equal"


def render_check(report: CheckReport, console: Console, units: str = "GiB") -> None:
    """Draw the table, then for each outcome that is not as it was what grew or shrank."""
    render_table(check_table(report, units), console)
    for outcome in filter(notable, report.outcomes):
        lines = details(outcome, units)
        if outcome.status == "added":
            continue
        render_line(console, "")
        render_line(console, name_of_outcome(outcome), "bold")
        render_line(console, headline(outcome, units), STYLES[TONES[outcome.status]])
        render_list(console, "What changed", lines)
    render_line(console, "")
    for line in (*report.notes, counts(report)):
        render_line(console, line)


# What can begin a link, emphasis, code, HTML, a mention or a cell. A stroke ends a cell even behind
# a backslash that is itself escaped, so it is written as an entity.
_SPECIAL = re.compile(r"([\\`*_\[\]<>&~$@#!]|:(?=\S))")


def escape_markdown(text: str) -> str:
    """Text that shows as it is, in a paragraph, a heading or a cell."""
    return _SPECIAL.sub(r"\\\1", text).replace("|", "&#124;")


def render_markdown(report: CheckReport, units: str = "GiB") -> str:
    """The whole check; ends in a newline."""
    table = check_table(report, units)
    parts = [f"### {escape_markdown(table.caption)}", _markdown_table(table)]
    for outcome in filter(notable, report.outcomes):
        if outcome.status == "added":
            continue
        lines = [escape_markdown(headline(outcome, units)), ""]
        lines += [
            f"- {escape_markdown(line)}"
            for line in details(outcome, units, MARKDOWN_REASONS_OF_A_GROUP)
        ]
        parts += [f"#### {escape_markdown(name_of_outcome(outcome))}", "\n".join(lines).rstrip()]
    parts += [escape_markdown(line) for line in (*report.notes, counts(report))]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rules = ["--:" if column.numeric else ":--" for column in table.columns]
    rows = [
        [column.label for column in table.columns],
        rules,
        *([escape_markdown(cell.text) for cell in row.cells] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


# GitHub shows 10 errors and 10 warnings of a step and takes a summary of 1 MiB; the escapes are
# those of the actions toolkit's `core/src/command.ts`.
Level = Literal["error", "warning", "notice"]
MAX_OF_A_LEVEL = 10
MAX_TITLE = 255
MAX_MESSAGE_BYTES = 64 * 1024
MAX_SUMMARY_BYTES = MiB
CUT = "\n\n*cut here: a step summary holds 1 MiB*\n"


def render_annotations(report: CheckReport, units: str = "GiB") -> str:
    """One line an annotation; where there are too many of a level, the last one counts the rest."""
    found: dict[Level, list[CaseOutcome]] = {"error": [], "warning": [], "notice": []}
    for outcome in report.outcomes:
        if (level := _level_of(outcome)) is not None:
            found[level].append(outcome)
    lines = [
        line
        for level, outcomes in found.items()
        for line in _annotations_of(level, outcomes, units)
    ]
    return "".join(f"{line}\n" for line in lines)


def _level_of(outcome: CaseOutcome) -> Level | None:
    if outcome.exit_code:
        return "error" if outcome.status in ("regression", "failed") else "warning"
    return "notice" if outcome.status == "gain" else None


def _annotations_of(level: Level, outcomes: list[CaseOutcome], units: str) -> Iterator[str]:
    fits = len(outcomes) <= MAX_OF_A_LEVEL
    shown = outcomes if fits else outcomes[: MAX_OF_A_LEVEL - 1]
    for outcome in shown:
        title = f"Memory: {name_of_outcome(outcome)}"
        yield annotation(level, title, _whole_text(outcome, units))
    if not fits:
        rest = len(outcomes) - len(shown)
        yield annotation(level, f"Memory: {rest} more", "see the step summary or the log for all")


def annotation(level: Level, title: str, message: str) -> str:
    """A workflow command on one line, whatever the title and the message hold."""
    cut = message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore")
    return f"::{level} title={_escape_property(title[:MAX_TITLE])}::{_escape_data(cut)}"


def _escape_data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_data(text).replace(":", "%3A").replace(",", "%2C")


def fitting_summary(markdown: str, written_bytes: int) -> str:
    """As much of the markdown, in whole lines, as a summary takes that holds some already.

    Args:
        markdown: what is to be added.
        written_bytes: what the step's summary holds already.
    """
    room = MAX_SUMMARY_BYTES - written_bytes
    text = markdown.encode()
    if len(text) <= room:
        return markdown
    kept = text[: max(room - len(CUT.encode()), 0)].decode(errors="ignore")
    return kept.rpartition("\n")[0] + CUT if kept else ""


SUITE = "tritter-mem check"
# What XML 1.0 has no way to say, beyond what `printable` has made visible already.
_NOT_XML = re.compile("[\ufffe\uffff]")


def render_junit(report: CheckReport, units: str = "GiB") -> str:
    """The whole check: a regression is a failure, what could not be compared or run an error."""
    tests = len(report.outcomes)
    failures = len(report.with_status(["regression"]))
    errors = sum(_is_junit_error(outcome) for outcome in report.outcomes)
    totals = {"tests": str(tests), "failures": str(failures), "errors": str(errors)}
    suites = ET.Element("testsuites", {"name": SUITE, **totals})
    suite = ET.SubElement(suites, "testsuite", {"name": SUITE, **totals})
    for outcome in report.outcomes:
        _add_junit_case(suite, outcome, units)
    ET.indent(suites)
    body = ET.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _is_junit_error(outcome: CaseOutcome) -> bool:
    return outcome.exit_code != 0 and outcome.status != "regression"


def _add_junit_case(suite: ET.Element, outcome: CaseOutcome, units: str) -> None:
    names = {
        "name": _xml_text(name_of_outcome(outcome)),
        "classname": f"tritter_mem.{outcome.kind}",
    }
    case = ET.SubElement(suite, "testcase", names)
    text = _whole_text(outcome, units)
    if outcome.exit_code:
        kind = "error" if _is_junit_error(outcome) else "failure"
        about = {"type": outcome.status, "message": _xml_text(headline(outcome, units))}
        ET.SubElement(case, kind, about).text = _xml_text(text)
    elif notable(outcome):
        ET.SubElement(case, "system-out").text = _xml_text(text)


def _xml_text(text: str) -> str:
    return _NOT_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
