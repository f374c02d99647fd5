"""What a named model takes at least, in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tritter_mem.report.table import BLANK, Cell, Column, Row, Table, bytes_cell
from tritter_mem.report.terminal import render_line, render_table
from tritter_mem.report.words import NAME_LIMIT, TEXT_LIMIT
from tritter_mem.results.model import LeastMemory
from tritter_mem.text import printable
from tritter_mem.units import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import Console


def render_least(least: LeastMemory, console: Console, units: str = "GiB") -> None:
    """A table, the verdict as far as there is one, and what is not counted."""
    render_table(least_table(least, units), console)
    render_line(console, verdict(least, units), "bold red" if least.exceeds_budget else "bold")
    for line in remarks(least, units):
        render_line(console, line)


def least_table(least: LeastMemory, units: str) -> Table:
    """Parameters, weights, cache and context against the budget."""
    tokens = f"{format_count(least.context)} tokens, batch {least.batch}, {least.cache_dtype}"
    rows = [
        ("Weights", _billions(least.language_parameters), least.weight_bytes),
        ("KV cache", tokens, least.kv_cache_bytes),
        ("CUDA context", least.gpu, least.context_bytes),
        ("Together, at least", "", least.total_bytes),
        ("Budget", least.gpu, least.budget_bytes),
    ]
    name, kind = (printable(text, NAME_LIMIT) for text in (least.name, least.architecture))
    return Table(
        caption=f"{name} ({kind})",
        columns=(
            Column(label="What", numeric=False),
            Column(label="Of", numeric=False),
            Column(label="Memory"),
        ),
        rows=[
            Row(cells=(Cell(text=what), Cell(text=of) if of else BLANK, bytes_cell(size, units)))
            for what, of, size in rows
        ],
    )


def verdict(least: LeastMemory, units: str) -> str:
    """Whether it surely does not fit."""
    needs = format_bytes(least.total_bytes, units)
    budget = format_bytes(least.budget_bytes, units)
    if least.exceeds_budget:
        return f"does not fit: needs more than {needs}, budget {budget}"
    return (
        f"no verdict: needs more than {needs} of {budget}; activations, logits and workspaces are "
        "not planned for this architecture"
    )


def remarks(least: LeastMemory, units: str) -> Iterator[str]:
    """Parameters, bytes of a token, what the files hold, and what is not counted."""
    yield (
        f"{_billions(least.parameters)} in the checkpoint, {_billions(least.active_parameters)} "
        "active for a token"
    )
    yield f"each further token takes {format_bytes(least.kv_bytes_per_token, units)} of KV cache"
    if least.stored_bytes is not None:
        yield f"the files hold {format_bytes(least.stored_bytes, units)} of weights"
    for what in least.unsupported:
        yield f"not counted: {printable(what, TEXT_LIMIT)}"


def _billions(count: int) -> str:
    return f"{count / 1e9:,.2f} B parameters" if count >= 10**8 else f"{count:,} parameters"
