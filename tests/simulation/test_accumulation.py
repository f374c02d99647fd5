"""A recorded backward pass adds gradients up as the same pass does where nothing records it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tritter_mem.simulation.operators import OperatorMode

Graph = Callable[[Tensor], Tensor]
kept: list[Tensor] = []


def products(h: Tensor) -> Tensor:
    return (h * 2).sum() + (h * 3).sum() + (h * 4).sum()


def residual(h: Tensor) -> Tensor:
    return ((h + torch.relu(h @ h.T) @ h) * 2).sum()


def shared(h: Tensor) -> Tensor:
    """Both branches get one and the same gradient."""
    return ((h + torch.relu(h)) * 2).sum()


def held_by_a_hook(h: Tensor) -> Tensor:
    branch = h.clone()
    branch.register_hook(kept.append)
    return (branch * 2).sum() + (h * 5).sum() + (h * 7).sum()


def transposed(h: Tensor) -> Tensor:
    return (h.T @ h).sum() + (h.T * 3).sum()


def recomputed(h: Tensor) -> Tensor:
    inner = checkpoint(lambda t: torch.relu(t * 2) + t, h, use_reentrant=False)
    assert isinstance(inner, Tensor)
    return (h * inner).sum()


class Adding(torch.autograd.Function):
    """Its backward pass adds in Python, out of place."""

    @staticmethod
    def forward(ctx: object, h: Tensor) -> Tensor:
        return h * 1

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 2 + grad * 3


def python_backward(h: Tensor) -> Tensor:
    once = Adding.apply(h)
    return (once * 2).sum() + (once * 3).sum() + (h * 4).sum()


GRAPHS = [products, residual, shared, held_by_a_hook, transposed, recomputed, python_backward]


def loss(graph: Graph, device: str) -> Tensor:
    leaf = torch.ones(3, 3, device=device, requires_grad=True)
    return graph(leaf * 1.0)


def unrecorded(graph: Graph, create_graph: bool) -> Counter[str]:
    """The sums of a backward pass that PyTorch's profiler lists, which changes nothing."""
    total = loss(graph, "cpu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        total.backward(create_graph=create_graph)
    return sums(event.name.replace("::", ".") for event in found.events() or ())


def recorded(graph: Graph, create_graph: bool, device: str) -> Counter[str]:
    total, names = loss(graph, device), list[str]()
    with OperatorMode(lambda operator, _inputs, _result: names.append(operator.name)):
        total.backward(create_graph=create_graph)
    return sums(name.removesuffix(".Tensor") for name in names)


def sums(names: object) -> Counter[str]:
    return Counter(name for name in names if name in ("aten.add", "aten.add_"))  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_sums_are_those_of_an_unrecorded_pass(
    graph: Graph, create_graph: bool, device: str
) -> None:
    found = recorded(graph, create_graph, device)
    assert found == unrecorded(graph, create_graph)
    assert found.total() > 0


def test_gradients_keep_their_values() -> None:
    """Adding in place changes no gradient that something else sees."""
    for graph in GRAPHS:
        leaves = [torch.randn(3, 3, requires_grad=True) for _ in range(2)]
        leaves[1].data.copy_(leaves[0].data)
        graph(leaves[0] * 1.0).backward()  # type: ignore[no-untyped-call]
        with OperatorMode(lambda *_: None):
            graph(leaves[1] * 1.0).backward()  # type: ignore[no-untyped-call]
        first, second = (leaf.grad for leaf in leaves)
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)
