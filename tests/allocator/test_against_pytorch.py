"""What PyTorch's own allocator answered to random sequences of operations, played again.

The files in data/ hold PyTorch's CUDA caching allocator of the release that their folder names,
over stand-ins for the driver's libraries: the allocator's decisions are real, no GPU took part.
`python -m benchmarks.standin.allocator --record tests/allocator/data/2.11` writes them.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.standin.allocator.operations import Sequence
from benchmarks.standin.allocator.record import decoded
from benchmarks.standin.allocator.simulated import SimulatedAllocator
from benchmarks.standin.allocator.state import differences
from tests.allocator.build import dump
from tritter_mem import torch_release
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.recordings.replay_snapshot import replay

FILES = sorted((Path(__file__).parent / "data").glob("*/*.json.gz"))
each_file = pytest.mark.parametrize(
    "path", FILES, ids=lambda path: f"{path.parent.name}-{path.name.removesuffix('.json.gz')}"
)


def recorded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def test_there_are_recordings_of_many_settings() -> None:
    assert len(FILES) > 10
    assert all("without a GPU" in recorded(path)["source"] for path in FILES)


@each_file
def test_every_answer_is_pytorchs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of each request or its failure, every statistic after it, and all blocks."""
    found = recorded(path)
    assert found["source"].startswith(f"PyTorch {path.parent.name}.")
    major, minor = map(int, path.parent.name.split("."))
    monkeypatch.setattr(torch_release, "release", lambda: (major, minor))
    for entry in found["sequences"]:
        sequence = Sequence.from_json(entry)
        allocator = SimulatedAllocator(sequence, parse_alloc_conf(found["conf"]))
        answers = decoded(entry["answers"], found["statistics"])
        for number, (operation, real) in enumerate(zip(sequence.operations, answers, strict=True)):
            simulated = allocator.do(operation)
            if operation is not sequence.operations[-1]:
                simulated = simulated.without_segments()
            assert differences(real, simulated) == [], f"operation {number}: {operation}"


@each_file
def test_a_snapshot_is_replayed_as_it_was_recorded(path: Path, tmp_path: Path) -> None:
    """A whole recording, one that begins late, and the last events of one."""
    for number, snapshot in enumerate(recorded(path)["snapshots"]):
        (device,) = replay(dump(tmp_path / f"{number}.pickle", snapshot)).devices
        assert device.fidelity.exact, device.fidelity
        assert device.replayed == device.recorded
        assert device.warnings == ()
