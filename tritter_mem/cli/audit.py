"""`tritter-mem audit`: the specification's claims, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tritter_mem.cli.listing import print_json, print_table
from tritter_mem.cli.options import Json

if TYPE_CHECKING:
    from tritter_mem.planner.audit import AuditRow, Unit

Simulate = Annotated[
    bool, typer.Option("--simulate", help="Simulate too what can be; takes about a minute.")
]
WIDE = 110


def command(simulate: Simulate = False, as_json: Json = False) -> None:
    """Check the memory specification's claims: claimed, computed, verdict.

    The specification describes a 7B BitNet model with 128K tokens on a 16 GB card. Its gigabytes
    are decimal, and so are those shown here.

    Example: tritter-mem audit
    """
    from tritter_mem.planner.audit import audit, to_dict

    rows = _simulated(shown=not as_json) if simulate else audit()
    if as_json:
        print_json(to_dict(rows))
    else:
        _print(rows, simulate)


def _simulated(shown: bool) -> tuple[AuditRow, ...]:
    from tritter_mem.cli.progress import showing
    from tritter_mem.planner.answers import Simulated
    from tritter_mem.planner.audit import audit

    with showing(shown) as progress:
        return audit(Simulated(progress))


def _print(rows: Sequence[AuditRow], simulate: bool) -> None:
    """Reasons stand in the table where there is room, else below it."""
    from tritter_mem.report.terminal import make_console

    figures = ("claimed", "computed", "simulated") if simulate else ("claimed", "computed")
    wide = make_console().width >= WIDE
    section = ("section",) if wide or not simulate else ()
    why = ("why",) if wide else ()
    names = (*section, "claim", *figures, "verdict", *why)
    print_table(names, ([_cell(row, name) for name in names] for row in rows))
    if not wide:
        _print_why(rows)


def _print_why(rows: Sequence[AuditRow]) -> None:
    typer.echo("\nwhy")
    for row in rows:
        if row.why:
            typer.echo(f"{row.section}, {row.claim}: {row.why}")


def _cell(row: AuditRow, name: str) -> str:
    value = getattr(row, name)
    return value if isinstance(value, str) else _figure(value, row.unit)


def _figure(value: float | None, unit: Unit) -> str:
    from tritter_mem.units import format_bytes

    if value is None:
        return ""
    if unit == "bytes":
        return format_bytes(round(value), "GB")
    return f"{value:.1f}%" if unit == "percent" else f"{value:.1f}"
