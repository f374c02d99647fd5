"""Snapshots recorded on real GPUs: every segment and every address, to the byte.

The project does not ship them. The figures are those that came with the recordings.
"""

import time
from pathlib import Path

import pytest

from tritter_mem.recordings.replay_snapshot import replay
from tritter_mem.results.replay import DeviceReplay
from tritter_mem.units import MiB

FOLDER = Path(__file__).parents[3] / "shared" / "snapshots"
# Allocations, segment allocations, and MiB reserved at the start, the peak and the end.
RECORDINGS = {
    "small-from-empty": (36, 9, (0, 3606, 3606)),
    "lm24-inference-warm": (1280, 0, (1682, 1682, 1682)),
    "lm24-training-warm": (6526, 0, (6900, 6900, 6900)),
    "lm32-forward-growing": (2058, 289, (13126, 18756, 18756)),
    "lm32-step-after-empty-cache": (6769, 791, (58280, 58280, 58198)),
}

pytestmark = [
    pytest.mark.snapshots,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recorded snapshots in {FOLDER}"),
]


def replayed(name: str) -> DeviceReplay:
    (device,) = replay(FOLDER / f"{name}.pickle").devices
    return device


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_segment_and_address_is_as_recorded(name: str) -> None:
    allocations, segments, reserved_mib = RECORDINGS[name]
    start = time.monotonic()
    device = replayed(name)
    assert time.monotonic() - start < 10
    assert device.fidelity.segments_matched == segments
    assert device.fidelity.segments_missed == device.fidelity.segments_extra == 0
    assert device.fidelity.addresses_matched == device.fidelity.addresses_total == allocations
    reserved = (
        device.replayed.reserved_start_bytes,
        device.replayed.reserved_peak_bytes,
        device.replayed.reserved_end_bytes,
    )
    assert reserved == tuple(mib * MiB for mib in reserved_mib)
    assert device.recorded == device.replayed
    assert device.warnings == ()


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_recorded_row_has_the_recorded_peak_and_no_scenario_fails(name: str) -> None:
    device = replayed(name)
    assert device.scenarios[0].reserved_peak_bytes == device.recorded.reserved_peak_bytes
    assert all(scenario.fits for scenario in device.scenarios)
    peaks = {s.allocated_peak_bytes for s in device.scenarios if s.conf == ""}
    assert max(peaks) < device.recorded.reserved_peak_bytes
