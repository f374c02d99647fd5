"""`tritter-mem gpus`: the table of cards."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritter_mem.cli.options import Json, complete_gpus
from tritter_mem.cli.outputs import print_json, print_table

if TYPE_CHECKING:
    from tritter_mem.config.cards import GpuCard

HEADINGS = ("card", "MiB", "budget", "context MiB", "GB/s", "SMs", "capability")
NOTE = "* measured on such a card; the other context sizes are assumptions"


Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CARD",
        help="Only these cards.",
        autocompletion=complete_gpus,
        show_default=False,
    ),
]


def command(names: Names = None, as_json: Json = False) -> None:
    """List the GPUs that --gpu knows, smallest memory first.

    The budget is what a job may use if --budget is not given: 95% of the memory, rounded down to
    half a GiB. The size of the CUDA context is an assumption unless a * says that it was measured.
    AMD cards are for `plan` only. --json adds the source of each figure.

    Example: tritter-mem gpus
    """
    from tritter_mem.config.cards import card_names, find_card, read_card

    found = map(find_card, names) if names else map(read_card, card_names())
    cards = sorted(found, key=lambda card: (card.total_bytes, card.name))
    if as_json:
        print_json([_record(card) for card in cards])
    else:
        print_table(HEADINGS, map(_row, cards), numeric=6)
        if any(card.context_measured for card in cards):
            typer.echo(f"\n{NOTE}")


def _record(card: GpuCard) -> dict[str, Any]:
    return {
        **asdict(card),
        "default_budget_bytes": card.default_budget_bytes,
        "cublas_workspace_bytes": card.cublas_workspace_bytes,
    }


def _row(card: GpuCard) -> tuple[str, ...]:
    from tritter_mem.units import MiB, format_bytes

    major, minor = card.compute_capability
    return (
        card.name,
        str(card.total_bytes // MiB),
        format_bytes(card.default_budget_bytes),
        f"{card.context_bytes // MiB}{'*' if card.context_measured else ''}",
        f"{card.bandwidth_bytes_per_second / 10**9:g}",
        str(card.multiprocessors),
        f"{major}.{minor}",
    )
