"""What a test over its budget or its baseline says, and the table at the end of the session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from tritter_mem.report.check_report import TIGHTEN, details, growth_words, headline
from tritter_mem.report.table import BLANK, Cell, Column, Row, Table, bytes_cell, headroom_cell
from tritter_mem.report.words import (
    NAME_LIMIT,
    OUTSIDE,
    label,
    moment_words,
    suggestion_options,
    suggestion_sentence,
    verdict_sentence,
)
from tritter_mem.results.run import MemoryUse, Result, Verdict, held_by_same
from tritter_mem.text import printable
from tritter_mem.units import format_bytes

if TYPE_CHECKING:
    from tritter_mem.results.check import CaseOutcome

UNITS = "GiB"
UPDATE = "pytest --memory-baseline FILE --memory-update-baseline"
SUGGESTIONS = 4
CAPTION = "Memory of marked tests"
COMPARED = ("ok", "gain", "regression", "updated")
COLUMNS = (
    Column(label="test", numeric=False),
    Column(label="kind", numeric=False, wide=True),
    Column(label="GPU", numeric=False, wide=True),
    Column(label="needs"),
    Column(label="budget"),
    Column(label="headroom"),
    Column(label="baseline", numeric=False),
)


def over_budget(result: Result, verdict: Verdict) -> str:
    """Say what does not fit, what holds most of it, and what to change."""
    use = result.by_kind()[verdict.basis]
    lines = [_figure(use), *_most(use), *_changes(result, verdict)]
    return "\n  ".join((verdict_sentence(verdict, UNITS), *lines))


def _changes(result: Result, verdict: Verdict) -> Iterator[str]:
    """What `plan` suggests, or that by its formulas nothing has to change."""
    planned = result.planned.footprint_bytes if result.planned is not None else None
    if verdict.suggestions:
        yield "what to change, by the plan:"
    elif planned is not None and planned <= verdict.budget_bytes:
        yield f"`plan` suggests nothing: by its formulas {format_bytes(planned, UNITS)}, which fits"
    for suggestion in verdict.suggestions[:SUGGESTIONS]:
        yield f"  {suggestion_sentence(suggestion, UNITS)}"
        yield f"    {suggestion_options(suggestion)}"


def _figure(use: MemoryUse) -> str:
    """Which figure is compared with the budget."""
    if use.reserved_peak_bytes is None:
        return "the need is the largest sum of allocated tensors"
    reserved = format_bytes(use.reserved_peak_bytes, UNITS)
    rest = format_bytes(use.footprint_bytes - use.reserved_peak_bytes, UNITS)
    return f"the need is the device peak: {reserved} reserved by PyTorch, {rest} CUDA context"


def _most(use: MemoryUse) -> Iterator[str]:
    """The component, phase and module with most, as far as they are known."""
    total = format_bytes(use.allocated_peak_bytes, UNITS)
    components = use.components.items()
    name = max(components, key=components.__getitem__)
    if components[name]:
        size = format_bytes(components[name], UNITS)
        yield f"component {label(name)}: {size} of {total} allocated at the peak"
    if use.phases:
        phase = max(use.phases, key=lambda phase: phase.allocated_peak_bytes)
        size = format_bytes(phase.allocated_peak_bytes, UNITS)
        yield f"phase {printable(phase.name, NAME_LIMIT)}: {size} allocated{_at(use)}"
    if (refused := use.out_of_memory) is not None and use.device != "cpu":
        size = format_bytes(refused.requested_bytes, UNITS)
        yield f"out of memory: {size} more at {printable(refused.operator, NAME_LIMIT)}"
    for module in held_by_same(use.held_at_peak)[:1]:
        many = f", {module.count} of them" if module.count > 1 else ""
        name = printable(module.module, NAME_LIMIT) or OUTSIDE
        size = format_bytes(module.allocated_bytes, UNITS)
        yield f"module {name}{many} ({label(module.component)}): {size}"


def _at(use: MemoryUse) -> str:
    return f", the peak at {moment_words(use.peak_at)}" if use.peak_at else ""


def against_baseline(outcome: CaseOutcome) -> str:
    """Say what grew, or why nothing can be compared."""
    if outcome.gated is not None and outcome.status == "regression":
        return "\n".join((headline(outcome, UNITS), *(f"  {line}" for line in details(outcome))))
    # The rest of the message is on the command `check`.
    what = printable(outcome.message.partition(";")[0], 200)
    return f"{outcome.status}: {what}; if that is intended: {UPDATE}"


def summary(
    results: Sequence[Result], outcomes: Mapping[str, CaseOutcome], width: int
) -> list[str]:
    """The table at the end of a session, and what to do about gains.

    Args:
        results: of marked tests, named by their ids.
        outcomes: how they compare with a baseline, by id; empty without one.
        width: columns of the terminal.
    """
    from tritter_mem.report.terminal import make_console, render_table

    text = StringIO()
    console = make_console(text)
    console.width = width
    rows = [_row(result, outcomes.get(result.name)) for result in results]
    columns = COLUMNS if outcomes else COLUMNS[:-1]
    render_table(Table(caption=CAPTION, columns=columns, rows=rows), console)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    gains = sum(outcome.status == "gain" for outcome in outcomes.values())
    if gains:
        lines.append(f"{gains} {TIGHTEN}{UPDATE}")
    return lines


def _row(result: Result, outcome: CaseOutcome | None) -> Row:
    verdict = result.verdict
    if verdict is None:
        return Row(cells=(Cell(text=printable(result.name)), *[BLANK] * (len(COLUMNS) - 1)))
    return Row(
        cells=(
            Cell(text=printable(result.name)),
            Cell(text=verdict.basis),
            Cell(text=printable(result.gpu_of(verdict.basis), NAME_LIMIT)),
            bytes_cell(verdict.budget_bytes - verdict.headroom_bytes, UNITS),
            bytes_cell(verdict.budget_bytes, UNITS),
            headroom_cell(verdict.headroom_bytes, UNITS, words=False),
            BLANK if outcome is None else Cell(text=_moved(outcome)),
        )
    )


def _moved(outcome: CaseOutcome) -> str:
    """`+192.0 MiB regression`; the status alone where nothing is compared."""
    change = outcome.gated
    if change is None or outcome.status not in COMPARED:
        return outcome.status
    return f"{growth_words(change, UNITS)} {outcome.status}"
