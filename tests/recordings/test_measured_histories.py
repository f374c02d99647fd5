"""Runs recorded on a GPU by `make gpu`: every segment and every address, to the byte."""

import tarfile
from pathlib import Path

import pytest

from tritter_mem.recordings.replay_snapshot import replay

EVIDENCE = Path(__file__).parents[2] / "reports" / "nvidia-h200" / "files.tar.gz"
# Requests, segments, and bytes reserved at the peak.
HISTORIES = {
    "qwen3-8b--4-096-tokens--measured": (9077, 237, 17_882_415_104),
    "gemma-3-1b--4-096-tokens--measured": (9935, 115, 2_529_165_312),
    "Qwen3-5--0-8b-full-128--measured": (8734, 493, 8_021_606_400),
}
"""Of a dense model, one with windows of attention, and a step of training."""


@pytest.mark.parametrize("name", HISTORIES)
def test_every_segment_and_address_is_as_measured(name: str, tmp_path: Path) -> None:
    with tarfile.open(EVIDENCE) as files:
        files.extract(f"./scripts/{name}/history.pickle", tmp_path, filter="data")
    requests, segments, reserved_bytes = HISTORIES[name]
    (device,) = replay(tmp_path / "scripts" / name / "history.pickle").devices
    assert device.fidelity.segments_matched == segments
    assert device.fidelity.segments_missed == device.fidelity.segments_extra == 0
    assert device.fidelity.addresses_matched == device.fidelity.addresses_total == requests
    assert device.replayed.reserved_peak_bytes == reserved_bytes
    assert device.recorded == device.replayed
