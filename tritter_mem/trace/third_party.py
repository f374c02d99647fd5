"""Third-party models: any code that builds a model on a device and returns a step to run.

`build` is the phase `load`. Warm-up steps, whose peak does not count, show what a step does; the
steps after them are split into forward, backward and optimizer where they have these.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from unittest.mock import patch

from tritter_mem.config.gpus import GpuCard
from tritter_mem.errors import InputError
from tritter_mem.results import Estimate
from tritter_mem.trace.peaks import WARMUP
from tritter_mem.trace.user_code import ModuleCase, explained, load

if TYPE_CHECKING:
    from torch import Tensor, nn


_FIND_PACKED = "find_packed_sequence_indices"


class Watch(Protocol):
    """What follows a run: a recorder, or a stopwatch."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Entered around each phase."""

    def adopt(self, tensor: Tensor, category: str) -> None:
        """Told what a tensor is for."""


def run_module(case: ModuleCase, device: str, watch: Watch) -> None:
    """Build a model and run its steps.

    Args:
        case: the code and what to run of it.
        device: `meta`, `cpu` or `cuda`.
        watch: follows the run.

    Raises:
        InputError: the code failed, built no function, or put its tensors on another device.
        SimulationError: it needed what `meta` does not have.
        UsageError: it does not take the arguments.
    """
    import torch

    from tritter_mem.trace.categories import Categories
    from tritter_mem.trace.steps import Steps

    build = load(case)
    categories = Categories(watch.adopt)
    with categories, _one_device(case, device), explained(case):
        with watch.phase("load"):
            step = build(torch.device(device), **case.arguments)
        _check_step(step, case)
        categories.settle()
        with _one_sequence_a_row(device), Steps(watch.phase, categories.settle) as steps:
            with watch.phase(WARMUP):
                for _ in range(case.warmup):
                    step()
            for _ in range(case.steps):
                with steps.step():
                    step()


def simulate_module(
    case: ModuleCase, card: GpuCard, allocator_conf: str = "", save_trace: Path | None = None
) -> Estimate:
    """Simulate third-party code on a card.

    Args:
        case: the code and what to run of it.
        card: the card to stand for.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        save_trace: where to write the run's events; nowhere without it.

    Raises:
        InputError: the code failed.
        SimulationError: it needs what a simulation does not have; the message says which line.
        UsageError: it does not take the arguments.
    """
    from tritter_mem.trace.as_on_cuda import as_on_cuda
    from tritter_mem.trace.simulate import simulate_run

    def workload(device: str, watch: Watch) -> None:
        with as_on_cuda(card.compute_capability), redirect_stdout(sys.stderr):
            run_module(case, device, watch)

    estimate = simulate_run(workload, card, allocator_conf, save_trace)
    if not estimate.allocated_peak_bytes:
        raise InputError(
            f"{case.name}: made no tensor on the device that it was given: hand `device` on, as in "
            "`model.to(device)` or `torch.empty(..., device=device)`"
        )
    return estimate


@contextmanager
def _one_sequence_a_row(device: str) -> Iterator[None]:
    """In training, transformers reads position ids to find sequences that are packed into one row.

    On `meta` there is nothing to read: every row is taken to be one sequence.
    """
    masks = sys.modules.get("transformers.masking_utils")
    if device != "meta" or not hasattr(masks, _FIND_PACKED):
        yield
        return
    with patch.object(masks, _FIND_PACKED, lambda position_ids: None):
        yield


def _check_step(step: Any, case: ModuleCase) -> None:
    from torch.nn import Module

    if not callable(step) or isinstance(step, Module):
        raise InputError(
            f"{case.name}: returned {type(step).__name__}; it must return a function of no "
            "arguments that runs one step"
        )


@contextmanager
def _one_device(case: ModuleCase, device: str) -> Iterator[None]:
    """Refuse a module whose weights and inputs are on two devices: CUDA does, `meta` does not."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    def check(module: nn.Module, args: Any) -> None:
        weights = {name: weight.device.type for name, weight in module.named_parameters("", False)}
        given = {value.device.type for value in args if hasattr(value, "device") and value.dim()}
        if {*weights.values(), *given} >= {"cpu", device}:
            raise InputError(f"{case.name}: {_two_devices(module, weights, given, device)}")

    handle = None if device == "cpu" else register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _two_devices(module: nn.Module, weights: dict[str, str], given: set[str], device: str) -> str:
    name = type(module).__name__
    where = [f"its {weight} on {found}" for weight, found in weights.items()]
    where += [f"an input on {found}" for found in sorted(given)]
    return (
        f"{name} was called with {', '.join(where)}: make all of them on the device that the "
        f"function is given ({device})"
    )
