"""Activation checkpointing: which layers are recomputed in the backward pass, and what they keep.

Policies, for layer i of L:

- `none`: everything is kept.
- `every-layer`: each layer keeps its input alone.
- `every-nth`: the layers with i % n == 0 keep their input alone, the others everything. (This is
  what the specification's code does; it saves one layer in n, not n - 1.)
- `segments`: n layers at a time keep the input of the first.
- `selective-attention`: as every-layer, but the attention's output is kept, so that the quadratic
  part is not computed again.
- `selective-matmul`: and the results of every second matrix product, from the first on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

POLICIES = (
    "none",
    "every-layer",
    "every-nth",
    "segments",
    "selective-attention",
    "selective-matmul",
)

Layer = Callable[[Tensor], Tensor]


def run_layers(layers: Sequence[Layer], x: Tensor, policy: str, n: int) -> Tensor:
    """Run layers one after the other under a policy.

    Raises:
        ValueError: the policy is none of `POLICIES`.
    """
    if policy not in POLICIES:
        raise ValueError(f"got checkpointing policy {policy!r}, expected {', '.join(POLICIES)}")
    if policy == "segments":
        for start in range(0, len(layers), n):
            x = _checkpointed(_chain(layers[start : start + n]), x, policy)
        return x
    for index, layer in enumerate(layers):
        keeps_all = policy == "none" or (policy == "every-nth" and index % n != 0)
        x = layer(x) if keeps_all else _checkpointed(layer, x, policy)
    return x


def _chain(layers: Sequence[Layer]) -> Layer:
    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return run


def _checkpointed(layer: Layer, x: Tensor, policy: str) -> Tensor:
    options: dict[str, Any] = {}
    if policy.startswith("selective"):
        options["context_fn"] = partial(_keeping, matmuls=policy == "selective-matmul")
    out: Tensor = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False, **options)
    return out


class _Keeper:
    """The results that one checkpointed layer keeps, in the order in which they were made."""

    def __init__(self, matmuls: bool) -> None:
        self.keeps_matmuls = matmuls
        self.kept: deque[tuple[Tensor, ...]] = deque()
        self.replaying = False
        self.matmuls_seen = 0

    def wants(self, kind: Literal["attention", "matmul"]) -> bool:
        """Whether the next result of this kind is one to keep."""
        if kind == "attention":
            return True
        self.matmuls_seen += 1
        return self.keeps_matmuls and self.matmuls_seen % 2 == 1


_keeper: _Keeper | None = None


def _keeping(matmuls: bool) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    keeper = _Keeper(matmuls)
    return _use(keeper, replaying=False), _use(keeper, replaying=True)


@contextmanager
def _use(keeper: _Keeper, replaying: bool) -> Iterator[None]:
    global _keeper  # noqa: PLW0603  (autograd calls the operators: nothing can be passed to them)
    outer, _keeper = _keeper, keeper
    keeper.replaying, keeper.matmuls_seen = replaying, 0
    try:
        yield
    finally:
        _keeper = outer


def kept(
    kind: Literal["attention", "matmul"], compute: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Compute results, or take those that a selective checkpoint kept from the forward pass."""
    results, _ = _kept_or_made(kind, compute)
    return results


def product(
    saves: type[Function], x_TK: Tensor, weight_NK: Tensor, fill: Callable[[Tensor], object]
) -> Tensor:
    """A product whose inputs autograd saves before it is computed: [T, N] in the type of x.

    Recomputation ends as soon as all is there again that the backward pass asks for. Autograd saves
    a function's tensors when the function returns; were the product computed inside, that of a
    layer's end would be computed again for nothing.

    Args:
        saves: saves x and weight, and returns its third input, the result, as it is.
        x_TK: activations.
        weight_NK: weights.
        fill: computes the product into the result.
    """
    shape = (x_TK.shape[0], weight_NK.shape[0])
    (empty,), there = _kept_or_made("matmul", lambda: (x_TK.new_empty(shape),))
    out: Tensor = saves.apply(x_TK, weight_NK, empty)
    if not there:
        with torch.no_grad():
            fill(out)
    return out


def _kept_or_made(
    kind: Literal["attention", "matmul"], make: Callable[[], tuple[Tensor, ...]]
) -> tuple[tuple[Tensor, ...], bool]:
    """Results, and whether they are kept ones."""
    if _keeper is None or not _keeper.wants(kind):
        return make(), False
    if _keeper.replaying:
        return _keeper.kept.popleft(), True
    results = make()
    # Aliases: autograd is about to make the results themselves part of the graph.
    _keeper.kept.append(tuple(result.detach() for result in results))
    return results, False
