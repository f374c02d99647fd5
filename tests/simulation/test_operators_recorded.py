"""Operators' peaks on `meta` against those that PyTorch's CUDA allocator recorded.

`operators.json` is what `python -m benchmarks.standin.operators --output` wrote with PyTorch 2.11's
own CUDA build: its host code and its allocator, without a GPU, and so without cuDNN's attention.
"""

import json
from pathlib import Path

import pytest

from benchmarks.standin.__main__ import WITHOUT_CUDNN
from benchmarks.standin.operator_cases import CASES
from benchmarks.standin.operators import CARD, KNOWN, simulated, suffices
from tritter_mem.simulation.cuda.scratch import peak_bytes

RECORDED = json.loads((Path(__file__).parent / "operators.json").read_text())


def test_every_case_was_recorded() -> None:
    assert list(RECORDED["peak_bytes"]) == list(CASES)
    assert RECORDED["gpu"] == CARD.title


@pytest.mark.parametrize("name", CASES)
def test_peak_is_the_allocator_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what rules leave out: some KiB, and of sorts what cub takes beside its buffers."""
    monkeypatch.setenv(*WITHOUT_CUDNN)
    found = peak_bytes(simulated(CASES[name]))
    assert suffices(name, found, RECORDED["peak_bytes"][name]) is (name not in KNOWN)
