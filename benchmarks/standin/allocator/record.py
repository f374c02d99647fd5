"""PyTorch's answers to a few random sequences, in files for tests that run without it."""

from __future__ import annotations

import gzip
import json
import random
import re
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.standin.allocator.operations import Operation, Sequence, random_sequence
from benchmarks.standin.allocator.state import Answer, SeenBlock, SeenSegment

SOURCE = "PyTorch {version}'s CUDA caching allocator over stand-ins for the driver, without a GPU"
CANDIDATES = 30  # sequences, of which those that strain the allocator most are kept
KEPT = 3
LENGTH = 60
STRAIN = ("num_alloc_retries", "num_ooms", "num_device_free", "oversize_segments.freed")


def record(conf: str, seed: int, folder: Path) -> None:
    """Write what PyTorch did under one setting: answers to sequences, and snapshots of them."""
    import torch

    from benchmarks.standin.allocator.real import in_own_process

    generator = random.Random(f"{seed} {conf}")  # noqa: S311  (loads, no secrets)
    candidates = [
        random_sequence(generator, LENGTH, fraction="garbage" in conf) for _ in range(CANDIDATES)
    ]
    played = [(sequence, in_own_process(_answers, sequence)) for sequence in candidates]
    played.sort(key=lambda found: _strain(found[1]), reverse=True)
    names = list(played[0][1][0].statistics)
    found = {
        "source": SOURCE.format(version=torch.__version__),
        "conf": conf,
        "statistics": names,
        "sequences": [
            sequence.to_json() | {"answers": _encoded(answers, names)}
            for sequence, answers in played[:KEPT]
        ],
        "snapshots": [
            in_own_process(_snapshot, sequence, start, entries)
            for (sequence, _), (start, entries) in zip(played, _RECORDINGS, strict=False)
        ],
    }
    name = re.sub(r"[^a-z0-9]+", "-", conf.lower()).strip("-") or "default"
    text = json.dumps(found, separators=(",", ":"))
    (folder / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


# Recordings of a whole sequence, of its second half, and of its last events: the operation that
# they begin with, and how many events they hold.
_RECORDINGS = ((0, 10_000), (LENGTH // 2, 10_000), (0, 50))


def _answers(sequence: Sequence) -> list[Answer]:
    from benchmarks.standin.allocator.real import RealAllocator

    with closing(RealAllocator(sequence)) as allocator:
        return [allocator.do(operation) for operation in sequence.operations]


def _strain(answers: list[Answer]) -> int:
    return sum(answers[-1].statistics[name] for name in STRAIN)


def _encoded(answers: list[Answer], names: list[str]) -> list[list[Any]]:
    """Of the statistics what changed, of the segments what they were in the end."""
    before: dict[str, int] = {}
    encoded: list[list[Any]] = []
    for answer in answers:
        changed = {
            names.index(name): value
            for name, value in answer.statistics.items()
            if before.get(name, 0) != value
        }
        encoded.append([answer.result, changed])
        before = answer.statistics
    encoded[-1].append(answers[-1].segments)
    return encoded


def decoded(answers: list[list[Any]], names: list[str]) -> list[Answer]:
    """The answers as they were; segments for the last one alone."""
    statistics = dict.fromkeys(names, 0)
    found = []
    for result, changed, *last in answers:
        statistics = statistics | {names[int(name)]: value for name, value in changed.items()}
        segments = last[0] if last else []
        found.append(Answer(result, statistics, tuple(_segment(fields) for fields in segments)))
    return found


def _segment(fields: list[Any]) -> SeenSegment:
    *others, blocks = fields
    return SeenSegment(*others, tuple(SeenBlock(*block) for block in blocks))


def _snapshot(sequence: Sequence, start: int, entries: int) -> dict[str, Any]:
    """What `_dump_snapshot` would write after a sequence, less what only people read."""
    import torch

    from benchmarks.standin.allocator.real import RealAllocator

    with closing(RealAllocator(sequence)) as allocator:
        for number, operation in enumerate((*sequence.operations, Operation("empty"))):
            if number == start:
                torch.cuda.memory._record_memory_history(
                    context=None, max_entries=entries, clear_history=True
                )
            allocator.do(operation)
        found = torch.cuda.memory._snapshot()
    for entry in chain.from_iterable(found["device_traces"]):
        for key in entry.keys() - {"action", "addr", "device_free", "size", "stream"}:
            del entry[key]
    return {key: found[key] for key in ("segments", "device_traces", "allocator_settings")}
