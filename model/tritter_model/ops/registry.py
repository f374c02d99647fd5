"""How operators are made known to PyTorch.

An operator's wrapper allocates its outputs and scratch; its implementation only fills them. A
dispatch mode does not see inside an operator, so this is what makes a recording of the model's
memory the same on `meta`, on the CPU and on a GPU: every byte that counts is allocated outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tritter_model.labels import WORKSPACE, label

_library = torch.library.Library("tritter", "DEF")


def operator(schema: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register the decorated reference for every device, and nothing to do for `meta`.

    The operator returns nothing: `schema` marks what it fills with `(a!)`.
    """

    def register(reference: Callable[..., None]) -> Callable[..., None]:
        name = schema.partition("(")[0]
        _library.define(schema)
        _library.impl(name, reference, "CompositeExplicitAutograd")
        _library.impl(name, _nothing, "Meta")
        overload: Callable[..., None] = getattr(torch.ops.tritter, name).default
        return overload

    return register


def _nothing(*_: Any, **__: Any) -> None:
    """On `meta` there are no bytes to fill."""


def scratch(shape: tuple[int, ...], like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Memory that an operator needs while it runs, on the device of `like`."""
    with label(WORKSPACE):
        return torch.empty(shape, dtype=dtype, device=like.device)
