"""`tritter-mem audit`: the specification's claims, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritter_mem.cli.options import Json
from tritter_mem.cli.outputs import print_json, print_table
from tritter_mem.input_files import is_folder

if TYPE_CHECKING:
    from tritter_mem.evidence.audit import AuditRow, Measured, Unit

Simulate = Annotated[
    bool, typer.Option("--simulate", help="Also simulate the claims; takes about a minute.")
]
MeasuredOption = Annotated[
    Path | None,
    typer.Option(
        "--measured",
        metavar="FILE|DIR",
        help="Also show measured figures, from a result or from a folder that `validate` wrote.",
    ),
]
WIDE = 110


def command(
    simulate: Simulate = False, measured: MeasuredOption = None, as_json: Json = False
) -> None:
    """Check the claims of the memory specification that this project began with, one row each.

    The specification describes a 7B BitNet model with 128K tokens on a 16 GB card. Several of its
    numbers contradict its own formulas. Its gigabytes are decimal, and so are those shown here.

    Example: tritter-mem audit
    """
    from tritter_mem.evidence.audit import audit, to_dict

    runs = None if measured is None else _runs(measured)
    rows = _simulated(runs, shown=not as_json) if simulate else audit(measured=runs)
    if as_json:
        print_json(to_dict(rows))
    else:
        kinds = [name for name, asked in (("simulated", simulate), ("measured", runs)) if asked]
        _print(rows, kinds)


def _runs(path: Path) -> Measured:
    """The runs of a result file, or of all that are in a folder."""
    from tritter_mem.evidence.audit import Measured
    from tritter_mem.results.record_file import read_results, read_results_below

    return Measured(read_results_below(path) if is_folder(path) else read_results(path))


def _simulated(runs: Measured | None, shown: bool) -> tuple[AuditRow, ...]:
    from tritter_mem.cli.progress import showing
    from tritter_mem.evidence.audit import Simulated, audit

    with showing(shown) as progress:
        return audit(Simulated(progress), runs)


def _print(rows: Sequence[AuditRow], kinds: Sequence[str]) -> None:
    """Reasons stand in the table where there is room, else below it."""
    from tritter_mem.report.terminal import make_console

    figures = ("claimed", "computed", *kinds)
    wide = make_console().width >= WIDE
    section = ("section",) if wide or not kinds else ()
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
