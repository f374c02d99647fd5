"""What operators ask PyTorch's CUDA allocator for, beside what a simulation says of the same calls.

`python -m benchmarks.standin.operators`, with PyTorch's CUDA build and the stand-ins that
`build.py` makes: no kernel computes, every request is the real host code's. `--events` shows the
requests in order where peaks differ by more than some KiB; `--output` keeps the allocator's peaks,
which tests hold the simulation against. Exit code 1 where a peak differs by more than that.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.standin.operator_cases import CASES, INDICES, SORTS, Case, Tensors
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.results.writing import write_text_atomically
from tritter_mem.simulation.cuda.dispatch import as_on_cuda
from tritter_mem.simulation.cuda.libraries import Libraries
from tritter_mem.simulation.cuda.scratch import peak_bytes
from tritter_mem.simulation.recorder import Recorder
from tritter_mem.units import KiB

SCHEMA = "tritter-mem.operators/1"
CARD = find_gpu("h100")
SMALL_BYTES = 16 * KiB
"""What rules leave out of an operator: counters, seeds, scans over less than a block."""
CUB_SHARE = 0.015
"""What cub needs beside double buffers, as a part of a peak: by how many blocks fit the card."""
KNOWN = {"mse_loss": "the reduced loss keeps the memory of every element's loss"}
"""Cases that a simulation does not get right, and why."""


class Compared(NamedTuple):
    """Requests of one call: bytes that come (+) and go (-) in order."""

    name: str
    simulated: list[int]
    allocated: list[int]

    @property
    def peaks(self) -> tuple[int, int]:
        """Of the simulation, and of the allocator."""
        return peak_bytes(self.simulated), peak_bytes(self.allocated)

    @property
    def same(self) -> bool:
        """Whether the peaks are, but for what rules leave out."""
        return suffices(self.name, *self.peaks)


def suffices(name: str, simulated: int, allocated: int) -> bool:
    """Whether a simulated peak is the allocator's, but for what rules leave out."""
    sorts = name in SORTS or name in INDICES
    allowed = SMALL_BYTES + (CUB_SHARE * allocated if sorts else 0)
    return abs(simulated - allocated) <= allowed


def simulated(case: Case) -> list[int]:
    """What a simulation says that a call asks for, once libraries hold their workspaces."""
    libraries = Libraries(CARD, lambda: torch._C._current_graph_task_id() != -1)
    with as_on_cuda(CARD.compute_capability), Recorder("meta", libraries) as recorder:
        call = case(Tensors("meta"))
        call()
        start = len(recorder.log)
        kept = call()
        events = list(recorder.log)[start:]
    del kept
    return [event.bytes if event.kind == "alloc" else -event.bytes for event in events]


def allocated(case: Case) -> list[int]:
    """What a call asks PyTorch's CUDA allocator for, once libraries hold their workspaces."""
    call = case(Tensors("cuda"))
    call()
    gc.collect()  # what an earlier call left behind is no part of this one
    torch.cuda.memory._record_memory_history(max_entries=100_000, stacks="python", context=None)
    kept = call()
    snapshot = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)
    del kept
    return list(_requests(snapshot["device_traces"][0]))


def _requests(trace: list[dict[str, Any]]) -> Iterator[int]:
    """Signed bytes of an allocator's history, without what came before it."""
    addresses: set[int] = set()
    for event in trace:
        if event["action"] == "alloc":
            addresses.add(event["addr"])
            yield event["size"]
        elif event["action"] == "free_completed" and event["addr"] in addresses:
            yield -event["size"]


def lines(compared: Compared, events: bool) -> list[str]:
    """A row of the table, and the requests where they are wanted."""
    ours, real = compared.peaks
    same = "yes" if ours == real else f"{real - ours:+,}"
    if not compared.same:
        same = f"NO: {KNOWN.get(compared.name, 'not known why')}"
    row = [f"{compared.name:<40} {ours:>13,} {real:>13,}  {same}"]
    if events and not compared.same:
        row += [f"  simulated {compared.simulated}", f"  allocated {compared.allocated}"]
    return row


def document(found: list[Compared]) -> dict[str, Any]:
    """The allocator's peaks, and where they are from."""
    return {
        "schema": SCHEMA,
        "source": "PyTorch's CUDA allocator and host code, without a GPU: benchmarks/standin",
        "torch": torch.__version__,
        "gpu": CARD.title,
        "peak_bytes": {one.name: one.peaks[1] for one in found},
    }


def main() -> int:
    """Compare every case; the exit code."""
    parser = argparse.ArgumentParser(description="Simulated operators against the allocator.")
    parser.add_argument("--output", type=Path, help="where to keep the allocator's peaks")
    parser.add_argument("--events", action="store_true", help="show requests where peaks differ")
    asked = parser.parse_args()
    print(f"{'operator':<40} {'simulated':>13} {'allocator':>13}  same")
    found = []
    for name, case in CASES.items():
        found.append(Compared(name, simulated(case), allocated(case)))
        print("\n".join(lines(found[-1], asked.events)))
    if asked.output:
        write_text_atomically(asked.output, json.dumps(document(found), indent=1) + "\n")
    return 0 if all(one.same or one.name in KNOWN for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
