"""The environment is found without importing PyTorch, and whatever is missing is None."""

import subprocess
import sys
from types import SimpleNamespace

import pynvml
import pytest
import torch

from tritter_mem.devices.environment import collect_environment
from tritter_mem.units import MiB


class Nvml:
    """NVML with one card."""

    NVMLError = pynvml.NVMLError

    def __init__(self) -> None:
        self.opened = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "NVIDIA GeForce RTX 5080"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=16303 * MiB)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    fake = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_versions_are_those_that_run() -> None:
    found = collect_environment(allocator_conf="expandable_segments:True")
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.torch is not None
    assert torch.__version__.startswith(found.torch.split("+")[0])
    assert found.cuda == torch.version.cuda
    assert found.allocator_conf == "expandable_segments:True"


def test_card_and_driver_are_described(nvml: Nvml) -> None:
    found = collect_environment()
    assert found.gpu == "NVIDIA GeForce RTX 5080"
    assert (found.driver, found.total_bytes) == ("580.65", 16303 * MiB)
    assert nvml.opened == 0


def test_hidden_card_is_none(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = collect_environment()
    assert (found.gpu, found.driver, found.total_bytes) == (None, None, None)


def test_without_a_driver_there_is_no_card(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(nvml, "nvmlInit", missing)
    found = collect_environment()
    assert (found.gpu, found.driver, found.total_bytes) == (None, None, None)


def test_pytorch_is_not_imported() -> None:
    code = (
        "import sys; from tritter_mem.devices.environment import collect_environment as c; c();"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
