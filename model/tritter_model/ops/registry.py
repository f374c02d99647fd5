"""How operators are made known to PyTorch, and which of their two forms runs.

An operator's wrapper allocates its outputs and scratch; its implementation only fills them. A
dispatch mode does not see inside an operator, so this is what makes a recording of the model's
memory the same on `meta`, on the CPU and on a GPU: every byte that counts is allocated outside.

An operator has a reference in PyTorch, and may have a kernel that computes the same. `use_kernels`
is the one switch between them: by default tensors on a GPU take the kernel, others the reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from tritter_model.labels import WORKSPACE, label
from tritter_model.ops.jit import interpreted

_library = torch.library.Library("tritter", "DEF")
_MODES = {"auto": None, "triton": True, "reference": False}


class Operator:
    """An operator of the model; calling it goes through PyTorch's dispatcher.

    Args:
        schema: its PyTorch schema; the operator returns nothing, and what it fills is marked
            with `(a!)`.
        reference: what it computes, in PyTorch.
    """

    def __init__(self, schema: str, reference: Callable[..., None]) -> None:
        self.name = schema.partition("(")[0]
        self.reference = reference
        self.launch: Callable[..., None] | None = None
        _library.define(schema)
        _library.impl(self.name, self._run, "CompositeExplicitAutograd")
        _library.impl(self.name, _nothing, "Meta")
        self.overload = getattr(torch.ops.tritter, self.name).default

    def kernel(self, launch: Callable[..., None]) -> Callable[..., None]:
        """Register the decorated function as what a GPU runs; it allocates nothing."""
        self.launch = launch
        return launch

    def __call__(self, *args: Any) -> None:
        """Fill what the schema marks."""
        self.overload(*args)

    def _run(self, *args: Any) -> None:
        device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
        if self.launch is None or not _takes_kernel(device):
            return self.reference(*args)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return self.launch(*args)


def operator(schema: str) -> Callable[[Callable[..., None]], Operator]:
    """Make an operator of the decorated reference; `schema` is that of `Operator`."""

    def register(reference: Callable[..., None]) -> Operator:
        return Operator(schema, reference)

    return register


def _nothing(*_: Any, **__: Any) -> None:
    """On `meta` there are no bytes to fill."""


def use_kernels(choice: bool | None) -> None:
    """Choose what operators run: kernels (True), references (False), or each device's own (None).

    The environment variable TRITTER_KERNELS makes the choice at the start: `triton`, `reference`
    or `auto`. Kernels run on the CPU where TRITON_INTERPRET=1 is set.
    """
    global _choice  # noqa: PLW0603  (one switch for the process: operators cannot be passed any)
    _choice = choice


def _choice_of_environment() -> bool | None:
    mode = os.environ.get("TRITTER_KERNELS", "auto")
    if mode not in _MODES:
        raise ValueError(f"got TRITTER_KERNELS={mode}, expected {', '.join(_MODES)}")
    return _MODES[mode]


_choice = _choice_of_environment()


def _takes_kernel(device: torch.device) -> bool:
    wanted = device.type == "cuda" if _choice is None else _choice
    if wanted and device.type != "cuda" and not interpreted():
        raise RuntimeError(
            f"got tensors on {device.type}, where compiled kernels do not run; move them to a"
            " CUDA device, or set TRITON_INTERPRET=1 before the start to interpret the kernels"
        )
    return wanted


def scratch(shape: tuple[int, ...], like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Memory that an operator needs while it runs, on the device of `like`."""
    with label(WORKSPACE):
        return torch.empty(shape, dtype=dtype, device=like.device)
