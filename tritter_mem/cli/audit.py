"""`tritter-mem audit`: the specification's claims, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from tritter_mem.cli.listing import print_json, print_table
from tritter_mem.cli.options import Json

if TYPE_CHECKING:
    from tritter_mem.planner.audit import AuditRow, Unit

HEADINGS = ("section", "claim", "claimed", "computed", "verdict")
WIDE = 110


def command(as_json: Json = False) -> None:
    """Check the memory specification's claims: claimed, computed, verdict.

    The specification describes a 7B BitNet model with 128K tokens on a 16 GB card. Its gigabytes
    are decimal, and so are those shown here.

    Example: tritter-mem audit
    """
    from tritter_mem.planner.audit import audit, to_dict

    rows = audit()
    if as_json:
        print_json(to_dict(rows))
    else:
        _print(rows)


def _print(rows: Sequence[AuditRow]) -> None:
    """Reasons stand in the table where there is room, else below it."""
    from tritter_mem.report.terminal import make_console

    if make_console().width >= WIDE:
        print_table((*HEADINGS, "why"), [(*_row(row), row.why) for row in rows])
        return
    print_table(HEADINGS, map(_row, rows))
    typer.echo("\nwhy")
    for row in rows:
        if row.why:
            typer.echo(f"{row.section}, {row.claim}: {row.why}")


def _row(row: AuditRow) -> tuple[str, ...]:
    claimed, computed = (_figure(value, row.unit) for value in (row.claimed, row.computed))
    return row.section, row.claim, claimed, computed, row.verdict


def _figure(value: float | None, unit: Unit) -> str:
    from tritter_mem.units import format_bytes

    if value is None:
        return ""
    if unit == "bytes":
        return format_bytes(round(value), "GB")
    return f"{value:.1f}%" if unit == "percent" else f"{value:.1f}"
