"""What a child process runs, of the bundled model or of third-party code, as data that travels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tritter_mem.models.user_code import ModuleCase
from tritter_mem.results.from_json import from_plain
from tritter_model.config import RunConfig

if TYPE_CHECKING:
    from tritter_mem.simulation.user_module import Watch

Work = RunConfig | ModuleCase
_KINDS: dict[str, type[Any]] = {"bundled": RunConfig, "third-party": ModuleCase}


def to_plain(work: Work) -> dict[str, Any]:
    """The work as plain data."""
    kind = next(name for name, found in _KINDS.items() if isinstance(work, found))
    return {"kind": kind, "settings": asdict(work)}


def read_work(data: Mapping[str, Any]) -> Work:
    """The work that `to_plain` made data of."""
    found: Work = from_plain(_KINDS[data["kind"]], data["settings"])
    return found


def perform(work: Work, device: str, watch: Watch) -> None:
    """Run it.

    Args:
        work: what to run.
        device: `cpu`, `cuda:0`.
        watch: entered around each phase; third-party code also says what tensors are for.
    """
    if isinstance(work, ModuleCase):
        from tritter_mem.simulation.user_module import run_module

        run_module(work, device, watch)
    else:
        from tritter_model.run import run

        run(work, device, watch.phase)
