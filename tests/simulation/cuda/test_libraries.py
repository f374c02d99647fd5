"""Workspaces of libraries: one a thread and library from its first product on, or one a call."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tritter_mem import torch_release
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.simulation.cuda.libraries import Libraries
from tritter_mem.simulation.recorder import Recorder
from tritter_mem.torch_release import CUBLAS_BYTES, CUBLAS_BYTES_WIDE, CUBLASLT_BYTES

H100 = find_gpu("h100")


def in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def ones(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.ones(shape, dtype=dtype, device="meta")


@pytest.fixture(autouse=True)
def pytorch_2_11(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_release, "release", lambda: (2, 11))


@pytest.mark.parametrize(
    ("capability", "size"), [((8, 9), CUBLAS_BYTES), ((9, 0), CUBLAS_BYTES_WIDE)]
)
def test_size_follows_the_card(capability: tuple[int, int], size: int) -> None:
    card = replace(H100, compute_capability=capability)
    libraries = Libraries(card, lambda: False)
    assert list(libraries.newly_held("aten.mm.default", (), {})) == [("cuBLAS workspace", size)]
    assert list(libraries.newly_held("aten.bmm.default", (), {})) == []


def taken(call: Callable[[], object], times: int = 2) -> list[tuple[str, int]]:
    """Workspaces that calls take, in order."""
    with Recorder("meta", Libraries(H100, in_backward)) as recorder:
        for _ in range(times):
            call()
    events = [event for event in recorder.log if " workspace, " in event.operator]
    assert all((event.kind, event.category) == ("alloc", "workspace") for event in events)
    return [(event.operator, event.bytes) for event in events]


def test_a_product_with_a_bias_takes_one_more() -> None:
    layer, x = nn.Linear(8, 8, device="meta"), ones(4, 8, dtype=torch.float32)
    assert taken(lambda: layer(x)) == [
        ("cuBLAS workspace, aten.addmm.default", CUBLAS_BYTES_WIDE),
        ("cuBLASLt workspace, aten.addmm.default", CUBLASLT_BYTES),
    ]


def test_backward_has_a_handle_of_its_own() -> None:
    layer, x = nn.Linear(8, 8, device="meta"), ones(4, 8, dtype=torch.float32)
    assert [name for name, _ in taken(lambda: layer(x).sum().backward())] == [
        "cuBLAS workspace, aten.addmm.default",
        "cuBLASLt workspace, aten.addmm.default",
        "cuBLAS workspace, aten.mm.default",
    ]


@pytest.mark.parametrize("release", [(2, 12), (2, 14)])
def test_cublaslt_may_take_the_workspace_of_cublas(
    release: torch_release.Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_release, "release", lambda: release)
    layer, x = nn.Linear(8, 8, device="meta"), ones(4, 8, dtype=torch.float32)
    assert taken(lambda: layer(x)) == [("cuBLAS workspace, aten.addmm.default", CUBLAS_BYTES_WIDE)]


def test_from_2_15_on_each_call_has_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after the result, before the copy of a matrix, and goes with the call."""
    monkeypatch.setattr(torch_release, "release", lambda: (2, 15))
    bias, square, wide = ones(8), ones(8, 8), ones(8, 16)
    with Recorder("meta", Libraries(H100, in_backward)) as recorder:
        kept = [torch.addmm(bias, square, square), square @ square, square @ wide[:, ::2]]
    assert [(event.kind, event.bytes) for event in recorder.log] == [
        ("alloc", 128), ("alloc", CUBLASLT_BYTES), ("free", CUBLASLT_BYTES),
        ("alloc", 128), ("alloc", CUBLAS_BYTES_WIDE), ("free", CUBLAS_BYTES_WIDE),
        ("alloc", 128), ("alloc", CUBLAS_BYTES_WIDE), ("alloc", 128),
        ("free", CUBLAS_BYTES_WIDE), ("free", 128),
    ]  # fmt: skip
    assert len(kept) == 3


X, W = ones(200, 300), ones(300, 500)


@pytest.mark.parametrize(
    ("bias", "left", "right", "options", "takes"),
    [
        (ones(500), X, W, {}, True),
        (ones(500), X, W, {"alpha": 0.5}, True),
        (ones(500), X, W, {"beta": 0.5}, False),
        (ones(1, 500), X, W, {}, True),
        (ones(200, 500), X, W, {}, False),
        (ones(1), X, W, {}, False),
        (ones(1000)[::2], X, W, {}, False),
        (ones(500), X[:1], W, {}, True),
        (ones(500), X[:, :1], W[:1], {}, False),
        (ones(1), X, W[:, :1], {}, False),
        (ones(500), X.float(), W.float(), {}, True),
        (ones(500), X.double(), W.double(), {}, True),
    ],
)
def test_which_biases_go_to_cublaslt(
    bias: Tensor, left: Tensor, right: Tensor, options: dict[str, float], takes: bool
) -> None:
    """Recorded from PyTorch 2.11's host code, without a GPU, call by call."""
    found = taken(lambda: torch.addmm(bias.to(left.dtype), left, right, **options))
    assert [size for _, size in found] == [CUBLAS_BYTES_WIDE, *[CUBLASLT_BYTES] * takes]


def test_other_operators_take_none() -> None:
    assert taken(lambda: ones(4).exp().sum()) == []
