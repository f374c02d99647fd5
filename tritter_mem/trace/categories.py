"""What the memory of third-party code is for: weights, embeddings, gradients, optimizer state.

Third-party code says nothing of it, so PyTorch's own structures are read: the parameters and
buffers of every module, the gradients of parameters, the state of optimizers. A storage keeps its
category from its allocation on, so it suffices to look when each of these is complete. All else is
activations.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.optim import Optimizer, optimizer

from tritter_mem.trace.operators import tensors
from tritter_model import labels

Adopt = Callable[[Tensor, str], None]


class Categories:
    """Follows modules and optimizers, of whatever code, while it is entered.

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
