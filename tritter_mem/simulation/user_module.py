"""Third-party models: any code that builds a model on a device and returns a step to run.

`build` is the phase `load`. Warm-up steps, whose peak does not count, show what a step does; the
steps after them are split into forward, backward and optimizer where they have these.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.optim import Optimizer, optimizer

from tritter_mem.config.cards import GpuCard
from tritter_mem.errors import InputError
from tritter_mem.models.user_code import ModuleCase, explained, load
from tritter_mem.results.from_json import from_plain
from tritter_mem.results.run import MemoryUse
from tritter_mem.simulation.operators import tensors
from tritter_mem.simulation.peaks import WARMUP
from tritter_model import labels

Adopt = Callable[[Tensor, str], None]
"""Takes a tensor, and the category of its storage."""
PhaseHook = Callable[[str], AbstractContextManager[None]]
"""Entered with a phase's name around it."""
FORWARD, BACKWARD, OPTIMIZER, STEP = "forward", "backward", "optimizer", "step"
_ENGINE = "_engine_run_backward"  # what `backward` and `grad` call
_FIND_PACKED = "find_packed_sequence_indices"


class Watch(Protocol):
    """What follows a run: a recorder, or a stopwatch."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Entered around each phase."""

    def adopt(self, tensor: Tensor, category: str) -> None:
        """Called with a tensor and what it is for."""


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
    case: ModuleCase,
    card: GpuCard,
    allocator_conf: str = "",
    save_trace: Path | None = None,
    *,
    budget_bytes: int | None = None,
) -> MemoryUse:
    """Simulate third-party code on a card.

    Args:
        case: the code and what to run of it.
        card: the card to stand for.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        save_trace: where to write the run's events; nowhere without it.
        budget_bytes: what may be used of the card; None: there is no cap.

    Raises:
        InputError: the code failed.
        SimulationError: it needs what a simulation does not have; the message says which line.
        UsageError: it does not take the arguments.
    """
    from tritter_mem.simulation.cuda.dispatch import as_on_cuda
    from tritter_mem.simulation.simulate import simulate_run

    def workload(device: str, watch: Watch) -> None:
        with as_on_cuda(card.compute_capability, card.vendor), redirect_stdout(sys.stderr):
            run_module(case, device, watch)

    use = simulate_run(workload, card, allocator_conf, save_trace, budget_bytes=budget_bytes)
    if not use.allocated_peak_bytes:
        raise InputError(
            f"{case.name}: created no tensor on the device passed to it: pass `device` on, as in "
            "`model.to(device)` or `torch.empty(..., device=device)`"
        )
    return use


def simulated_apart(
    case: dict[str, Any],
    card: dict[str, Any],
    allocator_conf: str,
    save_trace: str | None,
    budget_bytes: int,
) -> dict[str, Any]:
    """`simulate_module` for a process of its own: takes and returns what JSON holds."""
    use = simulate_module(
        from_plain(ModuleCase, case),
        from_plain(GpuCard, card),
        allocator_conf,
        None if save_trace is None else Path(save_trace),
        budget_bytes=budget_bytes,
    )
    return asdict(use)


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
    if not callable(step) or isinstance(step, nn.Module):
        raise InputError(
            f"{case.name}: returned {type(step).__name__}; it must return a function of no "
            "arguments that runs one step"
        )


@contextmanager
def _one_device(case: ModuleCase, device: str) -> Iterator[None]:
    """Refuse a module whose weights and inputs are on two devices: CUDA does, `meta` does not."""

    def check(module: nn.Module, args: Any) -> None:
        weights = {name: weight.device.type for name, weight in module.named_parameters("", False)}
        given = {value.device.type for value in args if hasattr(value, "device") and value.dim()}
        if {*weights.values(), *given} >= {"cpu", device}:
            raise InputError(f"{case.name}: {_two_devices(module, weights, given, device)}")

    handle = None if device == "cpu" else hooks.register_module_forward_pre_hook(check)
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


class Categories:
    """What the memory of third-party code is for, found by hooks while it is entered.

    The code does not say, so PyTorch's structures are read: the parameters and buffers of every
    module, the gradients of parameters, the state of optimizers. A storage keeps its category from
    its allocation on, so it suffices to look when each of these is complete. All else is
    activations.

    Args:
        adopt: takes a tensor and the category of its storage.
    """

    def __init__(self, adopt: Adopt) -> None:
        self._adopt = adopt
        self._modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        handles = [
            hooks.register_module_parameter_registration_hook(self._made),
            hooks.register_module_buffer_registration_hook(self._made),
            hooks.register_module_forward_pre_hook(self._called),
            optimizer.register_optimizer_step_pre_hook(self._stepping),
            optimizer.register_optimizer_step_post_hook(self._stepped),
        ]
        for handle in handles:
            self._stack.callback(handle.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def settle(self) -> None:
        """Look at all parameters, buffers and gradients now; embeddings last: they may be tied."""
        modules = sorted(self._modules, key=lambda module: isinstance(module, nn.Embedding))
        for module in modules:
            self._settle(module)

    def _settle(self, module: nn.Module) -> None:
        for buffer in module.buffers(recurse=False):
            self._adopt(buffer, labels.WEIGHTS)
        for parameter in module.parameters(recurse=False):
            self._adopt(parameter, _kind(module))
        self._gradients(module.parameters(recurse=False))

    def _gradients(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                self._adopt(parameter.grad, labels.GRADIENTS)

    def _made(self, module: nn.Module, name: str, value: Any) -> None:
        """What `.to()` replaces later was a weight too."""
        self._modules.add(module)
        if isinstance(value, Tensor):
            self._adopt(value, _kind(module))

    def _called(self, module: nn.Module, args: Any) -> None:
        """Modules from before, and what `.to()` replaced, are known when they are called."""
        if module not in self._modules:
            self._modules.add(module)
            self._settle(module)

    def _stepping(self, stepping: Optimizer, args: Any, kwargs: Any) -> None:
        for group in stepping.param_groups:
            self._gradients(group["params"])

    def _stepped(self, stepped: Optimizer, args: Any, kwargs: Any) -> None:
        for tensor in tensors([list(state.values()) for state in stepped.state.values()]):
            self._adopt(tensor, labels.OPTIMIZER_STATE)


def _kind(module: nn.Module) -> str:
    return labels.EMBEDDINGS if isinstance(module, nn.Embedding) else labels.WEIGHTS


class Steps:
    """The phases of third-party code: forward, backward, optimizer, where a step has them.

    Forward begins with the call of an outermost module, backward with autograd's engine, optimizer
    with an optimizer's step; each lasts until the next begins. What comes before the first is in no
    phase. A step that showed neither backward nor optimizer in its warm-up is one phase, `step`.

    Args:
        phase: entered with each phase's name around it.
        after_backward: called when a backward pass is done.
    """

    def __init__(self, phase: PhaseHook, after_backward: Callable[[], None]) -> None:
        self._phase = phase
        self._after_backward = after_backward
        self._seen: set[str] = set()
        self._splits = False
        self._running = ""
        self._depth = 0
        self._current = ExitStack()
        self._watching = ExitStack()

    def __enter__(self) -> Self:
        handles = [
            hooks.register_module_forward_pre_hook(self._module_begins),
            hooks.register_module_forward_hook(self._module_ends, always_call=True),
            optimizer.register_optimizer_step_pre_hook(lambda *call: self._enter(OPTIMIZER)),
        ]
        for handle in handles:
            self._watching.callback(handle.remove)
        engine = getattr(torch.autograd, _ENGINE)
        watched = patch.object(torch.autograd, _ENGINE, self._engine(engine))
        self._watching.enter_context(watched)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watching.close()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step that counts."""
        if not self._seen & {BACKWARD, OPTIMIZER}:
            with self._phase(STEP):
                yield
            return
        self._splits = True
        try:
            if FORWARD not in self._seen:
                self._enter(FORWARD)
            yield
        finally:
            self._leave()
            self._splits = False

    def _enter(self, name: str) -> None:
        self._seen.add(name)
        if self._splits and name != self._running:
            self._leave()
            self._running = name
            self._current.enter_context(self._phase(name))

    def _leave(self) -> None:
        self._running = ""
        self._current.close()

    def _module_begins(self, module: nn.Module, args: Any) -> None:
        if self._depth == 0 and torch._C._current_graph_task_id() == -1:
            self._enter(FORWARD)
        self._depth += 1

    def _module_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1

    def _engine(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._enter(BACKWARD)
            try:
                return run(*args, **kwargs)
            finally:
                self._after_backward()

        return watched
