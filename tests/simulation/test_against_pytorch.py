"""The simulation against PyTorch's own CUDA allocator, by snapshots that it recorded.

The snapshots in `recorded` are of PyTorch 2.11's CUDA build over the stand-ins of
`benchmarks/standin`: every request and segment is PyTorch's own, no kernel computed anything. Where
the model itself changes, record them anew:

    python -m benchmarks.standin -m benchmarks.snapshots --output tests/simulation/recorded
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.snapshots import CASES, Case, simulated_case
from benchmarks.standin.events import first_difference, of_history, of_log
from benchmarks.trace_reader import load_log
from tritter_mem.allocator.snapshot_file import read_pickle
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.recordings.replay_snapshot import replay
from tritter_mem.results.run import MemoryUse
from tritter_mem.simulation.events import EventLog

RECORDED = Path(__file__).parent / "recorded"
Simulated = tuple[Case, MemoryUse, EventLog]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def simulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    case: Case = request.param
    path = tmp_path_factory.mktemp(case.name) / "trace.gz"
    return case, simulated_case(case, find_gpu("h100"), path), load_log(path)


def snapshot(case: Case) -> Any:
    return read_pickle(RECORDED / f"{case.name}.pickle")


def test_every_event_is_one_of_pytorchs_in_its_order(simulated: Simulated) -> None:
    case, _, log = simulated
    theirs = of_history(snapshot(case)["device_traces"][0])
    assert len(theirs) > 100
    assert first_difference(list(of_log(log)), theirs) == ""


def test_reserved_peak_is_pytorchs(simulated: Simulated) -> None:
    case, use, _ = simulated
    [device] = replay(RECORDED / f"{case.name}.pickle").devices
    assert use.reserved_peak_bytes == device.recorded.reserved_peak_bytes


def test_recorded_segments_and_addresses_replay(simulated: Simulated) -> None:
    case, *_ = simulated
    [device] = replay(RECORDED / f"{case.name}.pickle").devices
    assert device.fidelity.exact
    assert device.fidelity.segments_matched > 0
