"""Throughput of the allocator simulator and of `replay`: events a second, memory an event.

    python benchmarks/allocator.py [--events 600000]

The load is made here: training steps of a transformer whose sequence length changes from step to
step, which is what makes an allocator fragment. An event is one that PyTorch would record: a
request is one, its free two.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tritter_mem.allocator.caching_allocator import CachingAllocator
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.allocator.snapshot import RecordingAllocator, save_snapshot, snapshot_of
from tritter_mem.recordings.replay_snapshot import replay
from tritter_mem.recordings.scenarios import STANDARD
from tritter_mem.units import GiB, format_bytes

WIDTH, LAYERS = 2048, 24
CAPACITY_BYTES = 80 * GiB

# What to do: a size to allocate, or the position in the list of live blocks to free, counted from 0
# and negative.
Load = list[int]


def training(events: int, seed: int = 0) -> Load:
    """Training steps of varying sequence length, about as many events as asked for."""
    generator = random.Random(seed)  # noqa: S311  (a load, no secret)
    load: Load = [WIDTH * WIDTH * 2] * (4 * LAYERS)
    live = len(load)
    recorded = live
    while recorded < events:
        tokens = generator.randrange(256, 4096)
        sizes = [
            size
            for _ in range(LAYERS)
            for size in (4 * WIDTH * tokens, 16 * WIDTH * tokens, 4 * tokens, WIDTH * 4, 512)
        ]
        for size in sizes:
            load.append(size)
            load.append(size + 4096)
            load.append(-(live + 1) - 1)  # the second of the two goes at once
            live += 1
        for _ in sizes:
            live -= 1
            load.append(-live - 1)  # backwards through the layers
        recorded += 6 * len(sizes)
    return load


def play(allocator: CachingAllocator | RecordingAllocator, load: Load) -> int:
    """Do it; returns how many events PyTorch would have recorded."""
    live = []
    malloc, free = allocator.malloc, allocator.free
    events = 0
    for what in load:
        if what >= 0:
            live.append(malloc(what))
            events += 1
        else:
            free(live.pop(-what - 1))
            events += 2
    return events


def throughput(load: Load) -> None:
    """Events a second of processor time under each of the standard settings, the best of three."""
    print(f"{'settings':<40}{'events/s':>12}{'reserved peak':>16}")
    for conf in STANDARD:
        best = 0.0
        for _ in range(3):
            allocator = CachingAllocator(parse_alloc_conf(conf), CAPACITY_BYTES)
            start = time.process_time()
            events = play(allocator, load)
            best = max(best, events / (time.process_time() - start))
        peak = format_bytes(allocator.counters.reserved.peak)
        print(f"{conf or '(default)':<40}{best:>12,.0f}{peak:>16}")


def linearity(events: int) -> None:
    """Seconds of processor time for one, two, four and eight eighths of the load."""
    for share in (8, 4, 2, 1):
        load = training(events // share)
        allocator = CachingAllocator()
        start = time.process_time()
        count = play(allocator, load)
        seconds = time.process_time() - start
        print(f"{count:>10,} events  {seconds:6.2f} s  {1e6 * seconds / count:5.2f} µs an event")


def whole_replay(events: int) -> None:
    """`replay` of a snapshot file under every scenario, in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.pickle"
        recorder = RecordingAllocator(CachingAllocator())
        count = play(recorder, training(events))
        save_snapshot(path, snapshot_of(recorder, max_events=2 * events))
        size = format_bytes(path.stat().st_size)
        del recorder
        print(f"{count:,} events, {size} on disk")
        subprocess.run([sys.executable, __file__, "--replay", str(path)], check=True)


def most_memory() -> int:
    """The most bytes that this process has held so far (Linux)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measured_replay(path: Path) -> None:
    """Replay one file and print time and memory."""
    before = most_memory()
    start, processor = time.perf_counter(), time.process_time()
    device = replay(path).devices[0]
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    grown = most_memory() - before
    events = device.recorded_events
    print(
        f"{len(device.scenarios)} scenarios in {seconds:.1f} s, {processor:.1f} s of them on a "
        f"processor; at most {format_bytes(grown)} of memory, {grown / events:.0f} bytes an event; "
        f"exact: {device.fidelity.exact}"
    )


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=600_000)
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay:
        measured_replay(options.replay)
        return
    throughput(training(options.events))
    print()
    linearity(options.events)
    print()
    whole_replay(options.events)


if __name__ == "__main__":
    main()
