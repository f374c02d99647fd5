"""The example on running out of memory does what its page says.

The 125m model itself takes minutes on a CPU: it runs here on a GPU, and the tiny one on the CPU.
"""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_mem.devices.nvml import find_gpu
from tritter_mem.oom.jobs import predictor, training_job
from tritter_mem.oom.ladder import CLEAR_CACHE, Job, rungs
from tritter_mem.units import GB, MiB

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS / "examples"))
    import train_under_a_cap

    yield train_under_a_cap
    del sys.modules["train_under_a_cap"]


def losses_under_a_cap(example: Any, case: Any, cap_bytes: int) -> list[float]:
    """The losses of a run under a cap that the plain loop cannot meet."""
    assert not example.plain_loop_runs(case, cap_bytes)
    losses: list[float]
    losses, ladders = example.cured(case, cap_bytes)
    assert any(len(ladder.steps) > 1 for ladder in ladders)
    return losses


def test_a_capped_run_ends_with_the_losses_of_an_uncapped_one(example: Any) -> None:
    case = example.Case(profile="tiny", context=128)
    wanted = example.train_plainly(case)
    assert losses_under_a_cap(example, case, 56 * MiB) == pytest.approx(wanted, rel=1e-3)


RESERVED_MIB = {
    "as it is": 128,
    "checkpoint every 2nd layer": 102,
    "checkpoint every layer": 98,
    "4 of 8 sequences at a time": 96,
    "2 of 8 sequences at a time": 76,
    "1 of 8 sequences at a time": 74,
}
"""Reserved at most by a run, undone, and run again: recorded from PyTorch 2.11's CUDA allocator,
set up for an H100, each rung in a process of its own, without a device that computes."""


def test_what_is_predicted_at_each_rung_is_what_pytorch_reserved(example: Any) -> None:
    case, card = example.Case(profile="tiny", context=128), find_gpu("h100")

    def build(device: torch.device) -> Job[Tensor]:
        model = example.Transformer(case.model(), device, trainable=True)
        ids = torch.zeros((case.batch, case.context), dtype=torch.int64, device=device)
        targets = ids.roll(-1, 1)
        targets[:, -1].fill_(-100)
        return training_job(model, example.loss, (ids, targets), example.count)

    predict = predictor(build, card)
    ladder = rungs(build(torch.device("meta")).offers)
    needs = {rung.name: predict(rung.settings) for rung in ladder if rung.name != CLEAR_CACHE}
    assert needs == {
        name: reserved * MiB + card.context_bytes for name, reserved in RESERVED_MIB.items()
    }


@pytest.fixture
def large(example: Any) -> Any:
    return example.Case(device="cuda", batch=16, context=1024, steps=3)


@pytest.mark.gpu
def test_the_125m_model_trains_under_a_cap(example: Any, large: Any) -> None:
    assert len(losses_under_a_cap(example, large, 4 * GB)) == large.steps


@pytest.mark.gpu
@pytest.mark.computes
def test_the_125m_model_under_a_cap_has_the_same_losses(example: Any, large: Any) -> None:
    wanted = example.train_plainly(large)
    assert example.cured(large, 4 * GB)[0] == pytest.approx(wanted, rel=1e-3)


def test_the_page_links_the_example() -> None:
    page = (DOCS / "out-of-memory.md").read_text()
    assert "(examples/train_under_a_cap.py)" in page


def test_blocks_of_the_page_are_python_that_imports_what_there_is() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "out-of-memory.md").read_text(), re.DOTALL)
    imports = [line for block in blocks for line in block.splitlines() if " import " in line]
    for block in blocks:
        compile(block, "out-of-memory.md", "exec")
    exec("\n".join(imports), {})  # noqa: S102  (the page's own lines)
    assert len(blocks) >= 4
    assert len(imports) >= 5
