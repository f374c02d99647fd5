"""What is alive on a device, by what it is for."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tritter_mem.oom.components import known_components

META = torch.device("meta")


@pytest.fixture(autouse=True)
def _no_other_modules() -> None:
    """What other tests left in cycles is alive until it is collected."""
    gc.collect()
    assert known_components(META) == {}


def test_weights_embeddings_gradients_and_optimizer_state_are_told_apart() -> None:
    with META:
        table, layer = nn.Embedding(8, 4), nn.Linear(4, 2)
        layer.register_buffer("seen", torch.zeros(3))
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer = torch.optim.SGD([layer.weight], lr=0.1, momentum=0.9)
    optimizer.step()
    found = known_components(META)
    floats = {"embeddings": 8 * 4, "weights": 4 * 2 + 2 + 3, "gradients": 8, "optimizer_state": 8}
    assert found == {component: 4 * number for component, number in floats.items()}
    del table


def test_a_tied_weight_counts_once_as_an_embedding() -> None:
    with META:
        head, table = nn.Linear(4, 8, bias=False), nn.Embedding(8, 4)
    head.weight = table.weight
    assert known_components(META) == {"embeddings": 8 * 4 * 4}


def test_what_has_no_storage_of_its_own_does_not_count() -> None:
    """A diagnosis that fails would take the place of the error that it is about."""
    lazy = nn.LazyLinear(4, device=META)
    unmade = nn.Linear.__new__(nn.Linear)
    sparse = nn.Module()
    table = torch.sparse_coo_tensor(size=(3, 3), device=META, check_invariants=False)
    sparse.register_buffer("table", table)
    with FakeTensorMode(), META:
        fake = nn.Linear(8, 8)
    assert known_components(META) == {}
    del lazy, unmade, sparse, table, fake
