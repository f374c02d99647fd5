"""Workspaces of libraries: one a thread, held from the first product on."""

import pytest
import torch
from torch import nn

from tritter_mem.config.card import CUBLAS_BYTES, CUBLAS_BYTES_FROM_HOPPER
from tritter_mem.trace.libraries import Libraries
from tritter_mem.trace.recorder import Recorder


def in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


@pytest.mark.parametrize(
    ("capability", "size"),
    [((7, 5), CUBLAS_BYTES), ((8, 9), CUBLAS_BYTES), ((9, 0), CUBLAS_BYTES_FROM_HOPPER),
     ((12, 0), CUBLAS_BYTES_FROM_HOPPER)],
)  # fmt: skip
def test_size_follows_the_card(capability: tuple[int, int], size: int) -> None:
    libraries = Libraries(capability, lambda: False)
    assert libraries.newly_held("aten.mm.default") == size
    assert libraries.newly_held("aten.bmm.default") == 0
    assert libraries.held_bytes == size


def workspaces(training: bool) -> list[tuple[str, str]]:
    """Operators at which a linear layer with a bias takes workspaces, and their category."""
    libraries = Libraries((8, 0), in_backward)
    with Recorder("meta", libraries) as recorder:
        layer, x = nn.Linear(8, 8, device="meta"), torch.ones(4, 8, device="meta")
        for _ in range(2):
            loss = layer(x).sum()
            if training:
                loss.backward()
    events = [event for event in recorder.log if "workspace" in event.operator]
    assert all(event.kind == "alloc" and event.bytes == CUBLAS_BYTES for event in events)
    return [(event.operator.split(", ")[1], event.category) for event in events]


def test_a_product_with_a_bias_takes_the_same_one() -> None:
    assert workspaces(training=False) == [("aten.addmm.default", "workspace")]


def test_backward_has_a_handle_of_its_own() -> None:
    found = workspaces(training=True)
    assert found == [("aten.addmm.default", "workspace"), ("aten.mm.default", "workspace")]


def test_other_operators_take_none() -> None:
    libraries = Libraries((8, 0), in_backward)
    with Recorder("meta", libraries):
        torch.ones(4, device="meta").exp().sum()
    assert libraries.held_bytes == 0
