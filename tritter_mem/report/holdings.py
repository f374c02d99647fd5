"""What was alive at the allocated peak, by module, with the same module of every layer in one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tritter_mem.report.table import Bars, Cell, Column, Row, Table, bytes_cell
from tritter_mem.report.words import NAME_LIMIT, label, printable
from tritter_mem.results import Holding, Kind, Result
from tritter_mem.units import format_count

ROWS = 12
OUTSIDE = "outside of any module"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBySame:
    """What modules that differ in their numbers alone hold of one component together.

    Attributes:
        module: their path, as `Transformer.layers.*.mlp`.
        component: one of `COMPONENTS`.
        count: how many modules they are.
        allocated_bytes: of all of them.
    """

    module: str
    component: str
    count: int
    allocated_bytes: int


def held_by_same(holdings: Iterable[Holding]) -> list[HeldBySame]:
    """Join the holdings of modules that differ in their numbers alone, most first."""
    joined: defaultdict[tuple[str, str], list[Holding]] = defaultdict(list)
    for holding in holdings:
        joined[_NUMBER.sub("*", holding.module), holding.component].append(holding)
    found = [
        HeldBySame(
            module=module,
            component=component,
            count=len({holding.module for holding in same}),
            allocated_bytes=sum(holding.allocated_bytes for holding in same),
        )
        for (module, component), same in joined.items()
    ]
    return sorted(found, key=lambda held: (-held.allocated_bytes, held.module, held.component))


def holdings_table(result: Result, units: str) -> Table | None:
    """What held most of the peak; None where no kind of number knows modules."""
    kind = _kind_with_holdings(result)
    if kind is None:
        return None
    held = held_by_same(result.estimates()[kind].held_at_peak)
    rows = [_row(one, units) for one in held[:ROWS]]
    if rest := held[ROWS:]:
        rows.append(_rest_row(rest, units))
    return Table(
        caption=f"Alive at the allocated peak ({kind})",
        columns=(
            Column(label="Module", numeric=False),
            Column(label="Component", numeric=False),
            Column(label="Modules", wide=True),
            Column(label="Size"),
        ),
        rows=rows,
        bars=Bars(label="Share", full_bytes=max(sum(one.allocated_bytes for one in held), 1)),
    )


def _kind_with_holdings(result: Result) -> Kind | None:
    found = [kind for kind, estimate in result.estimates().items() if estimate.held_at_peak]
    return found[-1] if found else None


def _row(held: HeldBySame, units: str) -> Row:
    return Row(
        cells=(
            Cell(text=printable(held.module, NAME_LIMIT) or OUTSIDE),
            Cell(text=label(held.component)),
            Cell(text=format_count(held.count), value=held.count),
            bytes_cell(held.allocated_bytes, units),
        ),
        bar_bytes=held.allocated_bytes,
    )


def _rest_row(rest: list[HeldBySame], units: str) -> Row:
    size = sum(held.allocated_bytes for held in rest)
    count = sum(held.count for held in rest)
    return Row(
        cells=(
            Cell(text=f"{len(rest)} others"),
            Cell(text=""),
            Cell(text=format_count(count), value=count),
            bytes_cell(size, units),
        ),
        bar_bytes=size,
        total=True,
    )
