"""Random profiles: the simulated events of the bundled model against PyTorch's CUDA allocator's.

    python -m benchmarks.standin -m benchmarks.standin.profiles --examples 40

Models, caches, optimizers and checkpointing of every kind, small. Each allocation and free must be
there, in order and to the byte, up to the end of the run: what is then let go is in no order. Exit
code 1: one differs, and is shown.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.standin.events import Happened, first_difference, of_history, of_log
from benchmarks.trace_reader import load_log
from tests.planner.cases import profiles
from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.measure.phases import Stopwatch
from tritter_mem.measure.workload import perform
from tritter_mem.models.bundled import run_settings
from tritter_mem.simulation.simulate import simulate

_ENTRIES = 200_000
compared: list[int] = []


def simulated(profile: Profile, card: GpuCard) -> list[Happened]:
    """The events on `meta`."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.gz"
        simulate(profile, card=card, save_trace=path)
        return list(of_log(load_log(path)))


def of_the_allocator(profile: Profile, card: GpuCard) -> list[Happened]:
    """The events on `cuda:0`, where nothing is left of the run before."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.memory._record_memory_history(max_entries=_ENTRIES, stacks="python")
    try:
        perform(run_settings(profile, card), "cuda", Stopwatch())
        return of_history(torch.cuda.memory._snapshot()["device_traces"][0])
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def check(examples: int, card: GpuCard) -> None:
    """Compare so many profiles.

    Raises:
        AssertionError: one differs.
    """

    @settings(
        max_examples=examples, deadline=None, database=None, print_blob=False,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(profiles())
    def one(profile: Profile) -> None:
        ours, theirs = simulated(profile, card), of_the_allocator(profile, card)
        compared.append(len(ours))
        if difference := first_difference(ours, theirs):
            raise AssertionError(f"{profile}\n{difference}")

    one()


def main() -> int:
    """Compare; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare random profiles' events.")
    parser.add_argument("--examples", type=int, default=40)
    parser.add_argument("--gpu", default="h100", help="the card whose paths the device takes")
    given_ = parser.parse_args()
    try:
        check(given_.examples, find_gpu(given_.gpu))
    except AssertionError as error:
        print(error)
        return 1
    print(f"{len(compared):,} profiles, {sum(compared):,} events: all equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
