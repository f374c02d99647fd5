"""Activation checkpointing for any module: every n-th of its layers is recomputed in backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from tritter_mem.measure.ladder import EVERY_LAYER

if TYPE_CHECKING:
    from torch import Tensor, nn


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that a module repeats: its longest list of modules of one class; else none."""
    from torch import nn

    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    alike = [layers for layers in lists if len({type(layer) for layer in layers}) == 1]
    longest = max(alike, key=len, default=[])
    return longest if len(longest) > 1 else []


def mixes_sequences(model: nn.Module) -> bool:
    """Whether training in pieces, or a forward pass run twice, is not the same: batch norm."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def offered(model: nn.Module) -> tuple[int, ...]:
    """How often a module's layers can be checkpointed; not at all where a rerun is not the same."""
    layers = 0 if mixes_sequences(model) else len(layers_of(model))
    return tuple(n for n in EVERY_LAYER if n < layers)


def last_tokens(tensor: Tensor, window: int | None) -> Tensor:
    """The last columns of a tensor of [rows, tokens, ...]; all where there is no window."""
    return tensor if window is None or tensor.dim() < 2 else tensor[:, -window:]


@contextmanager
def recomputing(model: nn.Module, every: int | None) -> Iterator[None]:
    """Checkpoint layers 0, n, 2n, ... of a module where their forward runs inside.

    A graph that was made inside recomputes outside too. Random numbers are drawn again as they
    were.

    Args:
        model: a module with layers (`layers_of`), which no other run has (`claimed`).
        every: the n; None: nothing is checkpointed.
    """
    with ExitStack() as stack:
        if every is not None:
            for layer in layers_of(model)[::every]:
                stack.enter_context(_recomputed(layer))
        yield


@contextmanager
def _recomputed(layer: nn.Module) -> Iterator[None]:
    """Stand in for a layer's forward: hooks around it run once, its work twice."""
    from torch.utils.checkpoint import checkpoint

    before = vars(layer).get("forward")  # other code may stand in for it already
    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before
