"""Random operations on PyTorch's CUDA allocator and on the simulated one, compared after each.

    python -m benchmarks.standin.allocator [--seed 0] [--operations 20000] [--only CONF]
    python -m benchmarks.standin.allocator --record tests/allocator/data

Runs under the stand-in's Python: PyTorch's CUDA build over libraries that compute nothing. Exits
with 1 where anything differs: results, addresses, statistics, segments, blocks.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from benchmarks.standin.allocator.operations import (
    CONTEXT_BYTES,
    TOTAL_BYTES,
    Sequence,
    random_sequence,
    shrink,
)
from benchmarks.standin.allocator.record import record
from benchmarks.standin.allocator.simulated import SimulatedAllocator
from benchmarks.standin.allocator.state import differences
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.units import MiB

CONFS = (
    "",
    "max_split_size_mb:20",
    "max_split_size_mb:40",
    "max_split_size_mb:100,max_non_split_rounding_mb:40",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[1:8,4:2,16:4,32:1,>:8]",
    "garbage_collection_threshold:0.5",
    "garbage_collection_threshold:0.8,max_split_size_mb:64",
    "large_segment_size_mb:12,max_non_split_rounding_mb:30,max_split_size_mb:50",
    "large_segment_size_mb:32",
    "expandable_segments:True",
    "expandable_segments:True,large_segment_size_mb:12",
    "expandable_segments:True,max_split_size_mb:30",
    "expandable_segments:True,roundup_power2_divisions:2",
    "expandable_segments:True,garbage_collection_threshold:0.6",
)
LENGTHS = (30, 100, 300)
SHOWN = 12  # lines about a difference


class Difference(NamedTuple):
    """The number of the first operation whose answers differ, and how they do."""

    operation: int
    lines: list[str]


def first_difference(sequence: Sequence, conf: str) -> Difference | None:
    """Play a sequence on both allocators, up to the first operation whose answers differ."""
    from benchmarks.standin.allocator.real import in_own_process

    return in_own_process(_first_difference, sequence, conf)


def _first_difference(sequence: Sequence, conf: str) -> Difference | None:
    from benchmarks.standin.allocator.real import RealAllocator

    simulated = SimulatedAllocator(sequence, parse_alloc_conf(conf))
    real = RealAllocator(sequence)
    with closing(real):
        for number, operation in enumerate(sequence.operations):
            if found := differences(real.do(operation), simulated.do(operation)):
                return Difference(number, found)
    return None


def fuzz(conf: str, seed: int, operations: int) -> int:
    """Play sequences until there were so many operations; returns whether anything differed."""
    done = sequences = 0
    generator = random.Random(f"{seed} {conf}")  # noqa: S311  (loads, no secrets)
    found: Difference | None = None
    while done < operations and not found:
        length = generator.choice(LENGTHS)
        sequence = random_sequence(generator, length, fraction="garbage" in conf)
        found = first_difference(sequence, conf)
        done += length
        sequences += 1
    print(f"{conf or '(default)':<80}{sequences:>10,}{done:>12,}{int(found is not None):>12}")
    if found:
        shortest = shrink(sequence, lambda shorter: first_difference(shorter, conf) is not None)
        show(shortest, first_difference(shortest, conf) or found)
    return int(found is not None)


def show(sequence: Sequence, found: Difference) -> None:
    """Print a sequence up to where it differs, and what differs."""
    print(f"  others hold {sequence.held_bytes:,} bytes; memory fraction {sequence.fraction}")
    for operation in sequence.operations[: found.operation + 1]:
        print(f"  {operation}")
    for line in found.lines[:SHOWN]:
        print(f"    {line}")
    if len(found.lines) > SHOWN:
        print(f"    and {len(found.lines) - SHOWN} more")


def build_events(folder: Path) -> Path:
    """Compile the events that end on request."""
    library = folder / "events.so"
    source = Path(__file__).with_name("events.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return library


def in_process_of(conf: str, library: Path) -> int:
    """The job of one setting, which PyTorch reads when it starts."""
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "PYTORCH_CUDA_ALLOC_CONF": conf,
        "STANDIN_MEMORY_MIB": str(TOTAL_BYTES // MiB),
        "STANDIN_CONTEXT_MIB": str(CONTEXT_BYTES // MiB),
    }
    command = [sys.executable, *sys.orig_argv[1:], "--child", conf]
    return subprocess.run(command, env=environment, check=False).returncode


def child(conf: str, options: argparse.Namespace) -> int:
    """What the process of one setting does."""
    if options.record is None:
        return fuzz(conf, options.seed, options.operations)
    record(conf, options.seed, options.record)
    return 0


def main() -> int:
    """Print a row for each setting, or record them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operations", type=int, default=20_000, help="for each setting")
    parser.add_argument("--only", help="one setting, as in PYTORCH_CUDA_ALLOC_CONF")
    parser.add_argument("--record", type=Path, help="write files for the tests here instead")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        return child(options.child, options)
    if options.record is None:
        print(f"{'setting':<80}{'sequences':>10}{'operations':>12}{'differences':>12}", flush=True)
    confs = CONFS if options.only is None else (options.only,)
    with tempfile.TemporaryDirectory() as folder:
        library = build_events(Path(folder))
        return max([in_process_of(conf, library) for conf in confs])


if __name__ == "__main__":
    sys.exit(main())
