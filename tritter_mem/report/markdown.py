"""A check as GitHub-flavoured markdown: a table, and below it what grew or shrank."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tritter_mem.report.check import (
    check_table,
    counts,
    details,
    headline,
    name_of_outcome,
    notable,
)

if TYPE_CHECKING:
    from tritter_mem.check.outcome import CheckReport
    from tritter_mem.report.table import Table

REASONS = 5
# What can begin a link, emphasis, code, HTML, a mention or a cell. A stroke ends a cell even behind
# a backslash that is itself escaped, so it is written as an entity.
_SPECIAL = re.compile(r"([\\`*_\[\]<>&~$@#!]|:(?=\S))")


def escape(text: str) -> str:
    """Text that shows as it is, in a paragraph, a heading or a cell."""
    return _SPECIAL.sub(r"\\\1", text).replace("|", "&#124;")


def render_markdown(report: CheckReport, units: str = "GiB") -> str:
    """The whole check; ends in a newline."""
    table = check_table(report, units)
    parts = [f"### {escape(table.caption)}", _table(table)]
    for outcome in filter(notable, report.outcomes):
        if outcome.status == "added":
            continue
        lines = [escape(headline(outcome, units)), ""]
        lines += [f"- {escape(line)}" for line in details(outcome, units, REASONS)]
        parts += [f"#### {escape(name_of_outcome(outcome))}", "\n".join(lines).rstrip()]
    parts += [escape(line) for line in (*report.notes, counts(report))]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    rules = ["--:" if column.numeric else ":--" for column in table.columns]
    rows = [
        [column.label for column in table.columns],
        rules,
        *([escape(cell.text) for cell in row.cells] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
