"""Third-party code's memory events as simulated, held against those of PyTorch's CUDA allocator.

    python -m benchmarks.standin.events FILE.py:FUNCTION --args '{"layers": 2}' --shown 20

Prints the peaks of both, and every allocation and free that one has and the other has not, with
the operator on our side and the Python frames on PyTorch's. Exit code 1: some differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks.trace_reader import load_log
from tritter_mem.allocator.caching_allocator import CachingAllocator
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.config.cards import GpuCard
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.measure.cuda_run import measure, session_on
from tritter_mem.models.user_code import ModuleCase, read_case
from tritter_mem.results.run import MemoryUse
from tritter_mem.simulation.events import EventLog
from tritter_mem.simulation.playback import Places
from tritter_mem.simulation.user_module import simulate_module

_ENTRIES = 2_000_000
_FRAMES = 5
_KINDS = {"alloc": "alloc", "free_completed": "free"}


class Happened(NamedTuple):
    """One allocation or free; two are the same where `kind` and `size_bytes` are."""

    kind: str
    size_bytes: int
    where: str

    @property
    def what(self) -> tuple[str, int]:
        """What is compared."""
        return self.kind, self.size_bytes


class Run(NamedTuple):
    """A run's figures, its events and the segments that it took from the driver."""

    use: MemoryUse
    events: list[Happened]
    segments: int


class Difference(NamedTuple):
    """Events that stand in one place of the two lists and differ."""

    simulated: Sequence[Happened]
    allocator: Sequence[Happened]

    @property
    def reordered(self) -> bool:
        """Whether both have the same events in another order."""
        return sorted(e.what for e in self.simulated) == sorted(e.what for e in self.allocator)


def simulated(case: ModuleCase, card: GpuCard) -> Run:
    """The run on `meta`."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.gz"
        use = simulate_module(case, card, save_trace=path)
        log = load_log(path)
    return Run(use, list(of_log(log)), _segments(log))


def of_log(log: EventLog) -> Iterator[Happened]:
    """A simulated run's events; those of storages without bytes are none of an allocator's."""
    for event in log:
        if event.bytes:
            where = f"{event.phase or 'between'}: {event.operator} {event.module}"
            yield Happened(event.kind, event.bytes, where)


def _segments(log: EventLog) -> int:
    allocator = CachingAllocator(parse_alloc_conf(""))
    places, blocks = Places(allocator), {}
    for storage, is_alloc, size in log.requests(0, len(log)):
        if is_alloc:
            blocks[storage] = allocator.malloc(size, places.stream(log.places.get(storage, "")))
        else:
            allocator.free(blocks.pop(storage))
    return allocator.statistics["segment.all.allocated"]


def of_the_allocator(case: ModuleCase, stacks: str) -> Run:
    """The run on `cuda:0`, its history kept."""
    session = session_on(0)
    torch.cuda.memory._record_memory_history(
        enabled="all", context="alloc", stacks=stacks, max_entries=_ENTRIES
    )
    use = measure(case, session)
    found = torch.cuda.memory._snapshot()["device_traces"][0]
    segments = sum(entry["action"] == "segment_alloc" for entry in found)
    return Run(use, of_history(found), segments)


def of_history(entries: Sequence[dict[str, Any]]) -> list[Happened]:
    """The allocations and frees of a device's history, as PyTorch's snapshot has it."""
    return [_happened(entry) for entry in entries if entry["action"] in _KINDS]


def _happened(entry: dict[str, Any]) -> Happened:
    frames = entry.get("frames", [])
    told = [
        f"{Path(f['filename']).name}:{f['line']}:{f['name']}"
        for f in frames
        if "??" not in f["name"]
    ]
    return Happened(_KINDS[entry["action"]], entry["size"], " < ".join(told[:_FRAMES]))


def in_one_order(events: Sequence[Happened]) -> list[Happened]:
    """Frees in a row, by size: their order changes nothing, and may be by address."""
    runs = groupby(events, key=lambda event: event.kind)
    return [
        event for kind, run in runs for event in (sorted(run, key=_size) if kind == "free" else run)
    ]


def _size(event: Happened) -> int:
    return event.size_bytes


def differences(ours: Sequence[Happened], theirs: Sequence[Happened]) -> list[Difference]:
    """The places where two lists of events differ."""
    matcher = SequenceMatcher(None, [e.what for e in ours], [e.what for e in theirs], False)
    return [
        Difference(ours[i:j], theirs[k:m])
        for tag, i, j, k, m in matcher.get_opcodes()
        if tag != "equal"
    ]


def first_difference(ours: Sequence[Happened], theirs: Sequence[Happened]) -> str:
    """The events around the place where two lists part; empty where they do not.

    What is let go as a run ends is in no order: where only frees follow, the lists are equal.
    """
    for at in range(max(len(ours), len(theirs))):
        rest = ours[at:], theirs[at:]
        if not all(side and side[0].what == rest[0][0].what for side in rest):
            if all(event.kind == "free" for side in rest for event in side):
                return ""
            shown = [[*map(str, side[max(at - 3, 0) : at + 3])] for side in (ours, theirs)]
            return "\n".join([f"event {at:,}", "simulated", *shown[0], "allocator", *shown[1]])
    return ""


def unmatched(ours: Sequence[Happened], theirs: Sequence[Happened]) -> Iterator[str]:
    """Allocations that one list has more of than the other, wherever they stand."""
    counts: dict[int, list[list[Happened]]] = {}
    for side, events in enumerate((ours, theirs)):
        for event in events:
            if event.kind == "alloc":
                counts.setdefault(event.size_bytes, [[], []])[side].append(event)
    for size, (mine, others) in sorted(counts.items(), reverse=True):
        if len(mine) != len(others):
            places = sorted({e.where for e in max(mine, others, key=len)})
            yield f"{size:,} B: simulated {len(mine)}, allocator {len(others)}: {places[:3]}"


def show_figures(ours: Run, theirs: Run) -> None:
    """Print the peaks of both."""
    rows = [("segments", ours.segments, theirs.segments), *_peaks(ours.use, theirs.use)]
    for name, simulated_bytes, allocator_bytes in rows:
        part = simulated_bytes / allocator_bytes - 1 if allocator_bytes else 0.0
        print(f"{name:28}{simulated_bytes:>16,}{allocator_bytes:>16,}{part:>+10.3%}")


def _peaks(ours: MemoryUse, theirs: MemoryUse) -> Iterator[tuple[str, int, int]]:
    yield "allocated", ours.allocated_peak_bytes, theirs.allocated_peak_bytes
    yield "reserved", ours.reserved_peak_bytes or 0, theirs.reserved_peak_bytes or 0
    others = {phase.name: phase for phase in theirs.phases}
    for phase in ours.phases:
        if other := others.get(phase.name):
            name = phase.name
            yield f"{name} allocated", phase.allocated_peak_bytes, other.allocated_peak_bytes
            yield f"{name} reserved", phase.reserved_peak_bytes or 0, other.reserved_peak_bytes or 0


def show_differences(found: Sequence[Difference], shown: int) -> None:
    """Print the first of the differences."""
    for difference in found[:shown]:
        print("reordered" if difference.reordered else "differs")
        for side, events in zip(("simulated", "allocator"), difference, strict=True):
            for event in events[:shown]:
                print(f"  {side} {event.kind} {event.size_bytes:,} {event.where}")


def main() -> int:
    """Compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--args", default="{}")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--stacks", choices=("python", "all"), default="python")
    parser.add_argument("--shown", type=int, default=12, help="differences to print")
    given = parser.parse_args()
    case = read_case(given.module, given.args, warmup=given.warmup)
    ours, theirs = simulated(case, find_gpu(given.gpu)), of_the_allocator(case, given.stacks)
    show_figures(ours, theirs)
    found = differences(in_one_order(ours.events), in_one_order(theirs.events))
    print(f"events {len(ours.events):,} {len(theirs.events):,}, differing places {len(found):,}")
    print(*unmatched(ours.events, theirs.events), sep="\n")
    show_differences(found, given.shown)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
