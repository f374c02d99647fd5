"""`auto` reads the card that is present from the driver; the driver here is a fake."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import EXIT_NOT_MEASURED, MeasureError
from tritter_mem.units import GiB, MiB


class FakeNvml:
    """As much of `pynvml` as is asked for; `cards` are the titles of the cards there are."""

    NVML_CLOCK_MEM = 2

    class NVMLError(Exception):
        """As NVML has it."""

    def __init__(self, *cards: str, total_mib: int = 16303) -> None:
        self.cards, self.total_mib, self.open = cards, total_mib, 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.cards:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        if index >= len(self.cards):
            raise self.NVMLError("Invalid Argument")
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return self.cards[int(uuid.removeprefix("GPU-"))]

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        del handle
        return SimpleNamespace(total=self.total_mib * MiB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> tuple[int, int]:  # noqa: N802
        del handle
        return 8, 9

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        del handle
        return {self.NVML_CLOCK_MEM: 10501}[kind]

    def nvmlDeviceGetMemoryBusWidth(self, handle: str) -> int:  # noqa: N802
        del handle
        return 384

    def nvmlDeviceGetNumGpuCores(self, handle: str) -> int:  # noqa: N802
        del handle
        return 16384


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def use(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> FakeNvml:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


def test_a_known_card_has_the_memory_that_the_driver_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = use(monkeypatch, FakeNvml("NVIDIA GeForce RTX 5080", total_mib=16000))
    card = find_gpu("auto")
    assert (card.name, card.total_bytes) == ("rtx-5080", 16000 * MiB)
    assert card.multiprocessors == find_gpu("rtx-5080").multiprocessors
    assert nvml.open == 0


def test_a_card_that_the_table_lacks_is_described_by_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, FakeNvml("NVIDIA Something New", total_mib=24564))
    card = find_gpu("auto")
    assert (card.name, card.title) == ("auto", "NVIDIA Something New")
    assert card.bandwidth_bytes_per_second == 1_008_096_000_000
    assert (card.compute_capability, card.multiprocessors) == ((8, 9), 128)
    assert 0.13 * GiB < card.context_bytes < 0.66 * GiB
    assert card.context_source.startswith("assumed, not measured")


@pytest.mark.parametrize(("visible", "name"), [("1", "t4"), ("1,0", "t4"), ("GPU-1", "t4")])
def test_the_first_visible_card_is_taken(
    monkeypatch: pytest.MonkeyPatch, visible: str, name: str
) -> None:
    use(monkeypatch, FakeNvml("NVIDIA H200", "Tesla T4"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpu("auto").name == name


@pytest.mark.parametrize("visible", ["", "-1", "none"])
def test_hidden_cards_are_no_cards(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    nvml = use(monkeypatch, FakeNvml("NVIDIA H200"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(MeasureError, match=f"CUDA_VISIBLE_DEVICES is '{visible}'"):
        find_gpu("auto")
    assert nvml.open == 0


@pytest.mark.parametrize(("cards", "visible"), [((), "0"), (("NVIDIA H200",), "7")])
def test_without_a_card_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, cards: tuple[str, ...], visible: str
) -> None:
    use(monkeypatch, FakeNvml(*cards))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(
        MeasureError, match=r"no NVIDIA card can be read .* --gpu rtx-5080"
    ) as caught:
        find_gpu("auto")
    assert caught.value.exit_code == EXIT_NOT_MEASURED
