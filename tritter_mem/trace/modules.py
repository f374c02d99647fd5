"""The qualified name of the module that runs, and of those that hold weights."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary, ref

from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as hooks

from tritter_mem.trace.nodes import Nodes


def _ignore(tensor: Tensor, module: str) -> None:
    """Nobody asks whose weights they are."""


class ModulePath:
    """Follows forward calls, of every module there is, while it is entered.

    Names are those of `named_modules()` behind the class of the outermost module, such as
    `Transformer.layers.3.mlp`. A root whose forward is never called (a method of it calls its
    layers) is found all the same if it was built while this was entered.

    Args:
        holds: told of every parameter and buffer, with the name of the first module that holds it,
            before any module of its model is called.

    Attributes:
        current: the module whose forward runs; empty outside of any.
    """

    def __init__(self, holds: Callable[[Tensor, str], None] = _ignore) -> None:
        self.current = ""
        self._holds = holds
        self._nodes = Nodes()
        self._running: list[tuple[Module, str]] = []
        self._names: WeakKeyDictionary[Module, str] = WeakKeyDictionary()
        self._parents: WeakKeyDictionary[Module, ref[Module]] = WeakKeyDictionary()
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
            hooks.register_module_module_registration_hook(self._register),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def running(self) -> str:
        """The module whose forward runs, or made what runs in the backward pass."""
        return self.current or self._nodes.running()

    def _enter(self, module: Module, args: Any) -> None:
        name = self._names.get(module) or self._learn(module)
        self._running.append((module, name))
        self._goes_on(name)

    def _leave(self, module: Module, args: Any, output: Any) -> None:
        # A module whose pre-hooks failed before ours leaves without having entered.
        if self._running and self._running[-1][0] is module:
            self._running.pop()
            self._goes_on(self._running[-1][1] if self._running else "")

    def _goes_on(self, name: str) -> None:
        self.current = name
        self._nodes.belong_to(name)

    def _register(self, parent: Module, name: str, child: Module | None) -> None:
        if child is not None:
            self._parents[child] = ref(parent)

    def _learn(self, module: Module) -> str:
        """Name the whole tree that a module belongs to."""
        root = module
        while (parent := self._parents.get(root, _nothing)()) is not None:
            root = parent
        prefix = type(root).__name__
        for name, part in root.named_modules():
            self._names.setdefault(part, f"{prefix}.{name}" if name else prefix)
        self._tell_weights(root)
        return self._names.setdefault(module, type(module).__name__)

    def _tell_weights(self, root: Module) -> None:
        told: set[int] = set()
        for part in root.modules():
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                if id(tensor) not in told:  # a shared one belongs to the first
                    told.add(id(tensor))
                    self._holds(tensor, self._names[part])


def _nothing() -> None:
    return None
