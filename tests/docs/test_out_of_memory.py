"""The example on running out of memory does what its page says.

The 125m model itself takes minutes on a CPU: it runs here on a GPU, and the tiny one on the CPU.
"""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tritter_mem.units import GB, MiB

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS / "examples"))
    import train_under_a_cap

    yield train_under_a_cap
    del sys.modules["train_under_a_cap"]


def assert_cured_alike(example: Any, case: Any, cap_bytes: int) -> None:
    wanted = example.train_plainly(case)
    assert not example.plain_loop_runs(case, cap_bytes)
    losses, ladders = example.cured(case, cap_bytes)
    assert losses == pytest.approx(wanted, rel=1e-3)
    assert any(len(ladder.steps) > 1 for ladder in ladders)


def test_a_capped_run_ends_with_the_losses_of_an_uncapped_one(example: Any) -> None:
    assert_cured_alike(example, example.Case(profile="tiny", context=128), 56 * MiB)


@pytest.mark.gpu
def test_the_125m_model_trains_under_a_cap_with_the_same_losses(example: Any) -> None:
    case = example.Case(device="cuda", batch=16, context=1024, steps=3)
    assert torch.cuda.is_available()
    assert_cured_alike(example, case, 4 * GB)


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
