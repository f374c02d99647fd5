"""Who runs, kernel or reference: by device, by call, by environment; and what is imported when."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tritter_model.ops import registry, rows
from tritter_model.ops.registry import use_kernels

SOURCES = Path(registry.__file__).parents[2]
QUANTISE = "import torch; from tritter_model.ops.rows import quantise_rows;"
RUN = "quantise_rows(torch.ones(1, 4));"
WITHOUT_TRITON = "import sys; sys.modules['triton'] = None;"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, without a GPU."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRIT")}
    kept |= {"PYTHONPATH": str(SOURCES), "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=kept, check=False)


def succeeds(code: str, **environment: str) -> bool:
    ran = python(code, **environment)
    assert ran.returncode == 0, ran.stderr
    return True


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which forms of `quantise_rows` ran."""
    names: list[str] = []
    operator = rows.quantise_into
    monkeypatch.setattr(operator, "reference", lambda *_: names.append("reference"))
    monkeypatch.setattr(operator, "launch", lambda *_: names.append("kernel"))
    yield names
    use_kernels(None)


def test_each_device_has_its_own_way(ran: list[str]) -> None:
    rows.quantise_rows(torch.ones(1, 4))
    rows.quantise_rows(torch.ones(1, 4, device="meta"))
    assert ran == ["reference"]


@pytest.mark.gpu
def test_a_gpu_takes_the_kernel(ran: list[str]) -> None:
    rows.quantise_rows(torch.ones(1, 4, device="cuda"))
    assert ran == ["kernel"]


def test_the_switch_decides_for_every_device(
    ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for choice in (True, False):
        use_kernels(choice)
        rows.quantise_rows(torch.ones(1, 4))
    assert ran == ["kernel", "reference"]


def test_an_operator_without_a_kernel_always_has_its_reference(
    ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows.quantise_into, "launch", None)
    use_kernels(True)
    rows.quantise_rows(torch.ones(1, 4))
    assert ran == ["reference"]


def test_references_import_no_triton() -> None:
    imported = "import sys; import tritter_model.run; assert 'triton' not in sys.modules"
    assert succeeds(f"{QUANTISE} {RUN} {imported}")


def test_references_need_no_triton() -> None:
    assert succeeds(f"{WITHOUT_TRITON} {QUANTISE} {RUN}")


def test_the_environment_chooses_interpreted_kernels() -> None:
    check = "import sys; assert 'triton.runtime.interpreter' in sys.modules"
    assert succeeds(f"{QUANTISE} {RUN} {check}", TRITTER_KERNELS="triton", TRITON_INTERPRET="1")


@pytest.mark.parametrize(
    ("code", "environment", "message"),
    [
        (QUANTISE, {"TRITTER_KERNELS": "fast"}, "expected auto, triton, reference"),
        (QUANTISE + RUN, {"TRITTER_KERNELS": "triton"}, "got tensors on cpu.*TRITON_INTERPRET=1"),
        (
            WITHOUT_TRITON + QUANTISE + RUN,
            {"TRITTER_KERNELS": "triton", "TRITON_INTERPRET": "1"},
            "the kernels need triton.*TRITTER_KERNELS=reference",
        ),
    ],
)
def test_a_choice_that_cannot_be_followed_says_what_to_do(
    code: str, environment: dict[str, str], message: str
) -> None:
    ran = python(code, **environment)
    assert ran.returncode != 0
    assert re.search(message, ran.stderr.strip().splitlines()[-1]), ran.stderr
