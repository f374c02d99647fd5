"""Small snapshots of known runs, recorded on a GPU, with what is simulated of the same beside them.

`python -m benchmarks.snapshots --output FOLDER` writes a snapshot for each case, its stack frames
left out, and `snapshots.json`. Tests on a CPU replay them. Exit code 3 without a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.rows import Figures, Row
from tritter_mem.allocator.snapshot import save_snapshot
from tritter_mem.allocator.snapshot_file import read_pickle
from tritter_mem.config.cards import GpuCard
from tritter_mem.config.loading import load_profile
from tritter_mem.devices.environment import collect_environment
from tritter_mem.errors import EXIT_NOT_MEASURED, EXIT_OK, MeasureError, OutputError, UsageError
from tritter_mem.evidence.validate import refuse_rehearsed_evidence
from tritter_mem.measure import runs
from tritter_mem.measure.target import MeasureOptions, Target, locate
from tritter_mem.measure.workload import Work
from tritter_mem.models.bundled import run_settings
from tritter_mem.models.user_code import read_case
from tritter_mem.results.run import MemoryUse
from tritter_mem.results.writing import write_text_atomically
from tritter_mem.simulation.simulate import simulate
from tritter_mem.simulation.user_module import simulate_module

MODULE = Path(__file__).parent.parent / "docs" / "examples" / "growing_cache.py"
DOCUMENT = "snapshots.json"
MOST_BYTES = 300_000
LIMIT_SECONDS = 60.0
SHORT = {
    "model.num_hidden_layers": 2,
    "workload.context": 64,
    "workload.prefill_chunk": 32,
    "workload.new_tokens": 3,
    "training.checkpointing": {"policy": "every-layer", "n": 1},
    "training.loss_chunk": 32,
}
GROWING = {"layers": 6, "tokens": 40}
_KEPT = frozenset({
    "action", "addr", "address", "allocator_settings", "blocks", "device", "device_free",
    "device_traces", "is_expandable", "requested_size", "segment_pool_id", "segment_type",
    "segments", "size", "state", "stream", "time_us", "total_size",
})  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run that is small, and the same on every machine.

    Attributes:
        changes: to the profile `tiny`; None: the case that is made to fragment.
    """

    name: str
    changes: dict[str, Any] | None
    conf: str = ""


CASES = (
    Case("inference", SHORT),
    Case("graph", {**SHORT, "workload.cuda_graph": True}),
    Case("training", {**SHORT, "workload.mode": "training"}),
    Case("growing-cache", None),
    Case("growing-cache-expandable", None, "expandable_segments:True"),
)


def work_of(case: Case, card: GpuCard) -> Work:
    """What is run of a case on the card."""
    if case.changes is None:
        return read_case(f"{MODULE}:build", json.dumps(GROWING), warmup=0, steps=1)
    return run_settings(load_profile("tiny", case.changes), card)


def simulated_case(case: Case, card: GpuCard, save_trace: Path | None = None) -> MemoryUse:
    """What is simulated of a case on the card; its events go to a file where one is named."""
    if case.changes is None:
        code = read_case(f"{MODULE}:build", json.dumps(GROWING), warmup=0, steps=1)
        return simulate_module(code, card, case.conf, save_trace)
    profile = load_profile("tiny", case.changes)
    return simulate(profile, card=card, save_trace=save_trace)


def stripped(found: Any) -> Any:
    """A snapshot without stack frames and whatever else no replay reads."""
    if isinstance(found, dict):
        return {k: v if k == "allocator_settings" else stripped(v)
                for k, v in found.items() if k in _KEPT}  # fmt: skip
    return [stripped(value) for value in found] if isinstance(found, list) else found


def keep(recorded: Path, path: Path) -> None:
    """Write a recorded snapshot stripped.

    Raises:
        OutputError: it is too large to be kept, or cannot be written.
    """
    save_snapshot(path, stripped(read_pickle(recorded)))
    size = path.stat().st_size
    if size > MOST_BYTES:
        path.unlink()
        raise OutputError(f"{path}: {size:,} bytes; a snapshot to keep has at most {MOST_BYTES:,}")


def record(case: Case, card: GpuCard, folder: Path) -> None:
    """Record a case's snapshot, in a separate process.

    Raises:
        MeasureError: the run failed.
        OutputError: the snapshot cannot be kept.
    """
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "snapshot.pickle"
        target = Target(
            device="cuda", time_limit_seconds=LIMIT_SECONDS, snapshot=whole,
            card=card, fitted=card, allocator_conf=case.conf,
        )  # fmt: skip
        runs.save_snapshot(work_of(case, card), target)
        keep(whole, folder / f"{case.name}.pickle")


def figures(case: Case, card: GpuCard) -> dict[str, Any]:
    """What stands beside a snapshot: what is simulated of the same."""
    simulated = simulated_case(case, card)
    return {
        "file": f"{case.name}.pickle",
        "allocator_conf": case.conf,
        "simulated_allocated_peak_bytes": simulated.allocated_peak_bytes,
        "simulated_reserved_peak_bytes": simulated.reserved_peak_bytes,
    }


def rows(files: Path) -> Iterator[Row]:
    """A case a row, as a part of `make gpu`.

    They run side by side: a snapshot has the requests and segments of its process alone.
    """
    folder = files / "snapshots"
    return (Row(case.name, partial(kept, case, folder), together=True) for case in CASES)


def kept(case: Case, folder: Path) -> Figures:
    """Record a case; the document beside the snapshots then has it, and those before it."""
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time:
        card = _card()
    record(case, card, folder)
    with _one_at_a_time:
        found = figures(case, card)
        document = folder / DOCUMENT
        before = json.loads(document.read_text())["snapshots"] if document.exists() else []
        write(card, folder, [*(one for one in before if one["file"] != found["file"]), found])
    return found


_one_at_a_time = Lock()
"""For what rows do in this process: one asks for the card, and one simulates and writes."""


@cache
def _card() -> GpuCard:
    """The card, for which a process asks PyTorch."""
    card = locate(MeasureOptions(device="cuda")).card
    assert card is not None  # noqa: S101  (only --device cpu has none)
    return card


def write(card: GpuCard, folder: Path, found: list[dict[str, Any]]) -> None:
    """Write what stands beside the snapshots."""
    document = {"gpu": card.title, "torch": collect_environment().torch, "snapshots": found}
    write_text_atomically(folder / DOCUMENT, json.dumps(document, indent=1) + "\n")


def main() -> int:
    """Record all; the exit code."""
    parser = argparse.ArgumentParser(description="Record small snapshots of known runs.")
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    folder: Path = parser.parse_args().output
    try:
        device = locate(MeasureOptions(device="cuda"))
        if device.standin:
            refuse_rehearsed_evidence(folder)
    except MeasureError as error:
        print(f"no CUDA device to record on: {error}", file=sys.stderr)
        return EXIT_NOT_MEASURED
    except UsageError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    card = device.card
    assert card is not None  # noqa: S101  (only --device cpu has none)
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    problems: list[str] = []
    for case in CASES:
        try:
            record(case, card, folder)
            found.append(figures(case, card))
        except (MeasureError, OutputError) as error:
            problems += [f"{case.name}: {problem}" for problem in error.problems]
    write(card, folder, found)
    print("\n".join([*(f"recorded {one['file']}" for one in found), *problems]))
    return EXIT_NOT_MEASURED if problems else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
