"""Planned against simulated for every bundled profile, with what each simulation takes.

Allocated peaks must agree within 2%, and each component of over 1% of the total within 3%. Two
cases more have a limit of 15 s and 2 GiB of memory: the 7B model's inference with 128K tokens, and
its training on 8K tokens with every layer checkpointed. Each case runs in a process of its own,
because peak memory is a process's. Run with `python -m benchmarks.simulate`; the exit code is 1
where a limit is broken.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from tritter_mem.config.bundled_files import bundled_profiles
from tritter_mem.config.loading import load_profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.measure.cpu_run import resident_peak_bytes
from tritter_mem.planner.compose import plan
from tritter_mem.results.run import Components
from tritter_mem.simulation.simulate import simulate

ALLOCATED, COMPONENT, COUNTED = 0.02, 0.03, 0.01
SECONDS, RESIDENT_BYTES = 15.0, 2 << 30
TRAINING_8K = {
    "workload.mode": "training",
    "workload.context": "8k",
    "training.checkpointing": {"policy": "every-layer", "n": 1},
}
TIMED: dict[str, tuple[str, dict[str, Any]]] = {
    "7b, inference, 128K": ("7b", {}),
    "7b, training, 8K, every-layer": ("7b", TRAINING_8K),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One profile, planned and simulated.

    Attributes:
        components: planned and simulated bytes of each that takes over 1% of the total.
        seconds: of the simulation, imports included.
        resident_peak_bytes: of its process.
    """

    name: str
    planned_bytes: int
    simulated_bytes: int
    components: dict[str, tuple[int, int]]
    seconds: float
    resident_peak_bytes: int

    @property
    def problems(self) -> list[str]:
        """What goes beyond the limits."""
        found = [
            f"{name} {_ratio(*pair):+.2%}"
            for name, pair in self.components.items()
            if abs(_ratio(*pair)) > COMPONENT
        ]
        total = _ratio(self.planned_bytes, self.simulated_bytes)
        found += [f"allocated {total:+.2%}"] if abs(total) > ALLOCATED else []
        if self.name in TIMED and self.seconds > SECONDS:
            found.append(f"{self.seconds:.1f} s")
        if self.name in TIMED and self.resident_peak_bytes > RESIDENT_BYTES:
            found.append(f"{self.resident_peak_bytes} B resident")
        return found


def _ratio(planned: int, simulated: int) -> float:
    return simulated / planned - 1 if planned else float(simulated > 0)


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Profile and settings of each case, by name."""
    return {**{name: (name, {}) for name in bundled_profiles()}, **TIMED}


def run(name: str, fast: bool = False) -> Case:
    """Plan and simulate one case in this process."""
    base, settings = cases()[name]
    profile = load_profile(base, settings)
    start = time.perf_counter()
    simulated = simulate(profile, fast=fast)
    seconds = time.perf_counter() - start
    planned = plan(profile, find_gpu(profile.gpu.name))
    return Case(
        name=name,
        planned_bytes=planned.allocated_peak_bytes,
        simulated_bytes=simulated.allocated_peak_bytes,
        components=_large(planned.components, simulated.components),
        seconds=round(seconds, 2),
        resident_peak_bytes=resident_peak_bytes() or 0,
    )


def _large(planned: Components, simulated: Components) -> dict[str, tuple[int, int]]:
    total, others = simulated.total_bytes, simulated.items()
    pairs = {name: (size, others[name]) for name, size in planned.items().items()}
    return {name: pair for name, pair in pairs.items() if max(pair) > COUNTED * total}


def _in_a_process(name: str) -> Case:
    command = [sys.executable, "-m", "benchmarks.simulate", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Case(**json.loads(done.stdout))


def _row(case: Case) -> str:
    total = _ratio(case.planned_bytes, case.simulated_bytes)
    worst = max(case.components, key=lambda name: abs(_ratio(*case.components[name])))
    return (
        f"{case.name:30} {case.planned_bytes / 1e9:9.3f} {case.simulated_bytes / 1e9:9.3f} "
        f"{total:+8.3%} {_ratio(*case.components[worst]):+8.3%} {worst:16} "
        f"{case.seconds:6.1f} {case.resident_peak_bytes / 2**20:7.0f}  {'; '.join(case.problems)}"
    )


def main() -> None:
    """Print a line a case; for one named case its figures as JSON."""
    if len(sys.argv) > 1:
        print(json.dumps(asdict(run(sys.argv[1]))))
        return
    print(
        f"{'profile':30} {'planned':>9} {'simulated':>9} {'':>8} {'worst component':25} "
        f"{'s':>6} {'MiB':>7}  beyond the limits"
    )
    broken = 0
    for name in cases():
        case = _in_a_process(name)
        broken += bool(case.problems)
        print(_row(case), flush=True)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
