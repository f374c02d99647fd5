"""Which module runs, and whose each storage is.

A module runs in its forward pass, and in the backward pass while nodes run that its forward made.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.autograd import _get_sequence_nr  # type: ignore[attr-defined]
from torch.nn import Module
from torch.nn.modules import module as hooks

from tritter_mem.simulation.events import EventLog
from tritter_mem.simulation.operators import dispatches_itself, tensors

_ACCUMULATES = (1 << 64) - 1
"""What nodes that add to a parameter's gradient have for a number; no forward made them."""


class Nodes:
    """Follows which numbers autograd gives to the nodes of each module.

    A thread's nodes are numbered in the order in which they are made, so it suffices to note the
    next number whenever another module begins or goes on. Nodes that another thread makes have
    numbers of their own; there they are made by recomputation, and are never run.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._starts = array("Q")
        self._modules: list[str] = []
        self._last = ""

    def belong_to(self, module: str) -> None:
        """From now on this module makes the nodes; none does where the name is empty."""
        if threading.get_ident() != self._thread:
            return
        number = _get_sequence_nr()
        if self._starts and self._starts[-1] == number:  # none was made since
            self._modules[-1] = module
        else:
            self._starts.append(number)
            self._modules.append(module)

    def running(self) -> str:
        """The module of the node that runs; between two nodes that of the first.

        Empty outside of the backward pass, and where no module made the node.
        """
        if torch._C._current_graph_task_id() == -1:
            self._last = ""
        elif (node := torch._C._current_autograd_node()) is not None:
            self._last = self._maker(node._sequence_nr())
        return self._last

    def _maker(self, number: int) -> str:
        at = bisect_right(self._starts, number) - 1
        return self._modules[at] if at >= 0 and number != _ACCUMULATES else ""


def _ignore(tensor: Tensor, module: str) -> None:
    """For those who do not ask whose weights they are."""


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


class Owners:
    """Gives the storages of a log to modules.

    A parameter or buffer belongs to the first module that holds it, other memory to the module
    whose forward or backward pass allocated it. What was allocated outside of any module belongs
    where the first of the operator's inputs does: an optimizer's state goes to the parameter's
    module, a loss to the module whose output it is made from. Where they belong to none either, as
    for a key-value cache, the first module whose forward uses the storage has it.

    Args:
        log: has the storages.
        number_of: the storage that is live at an address, by its number in the log.

    Attributes:
        unclaimed: live storages that belong to no module, by address.
    """

    def __init__(self, log: EventLog, number_of: Callable[[int], int | None]) -> None:
        self._log, self._number_of = log, number_of
        self.unclaimed: dict[int, int] = {}

    def came(self, address: int, number: int, inputs: Any, place: int) -> None:
        """A storage came, as the result in this place of an operator with these inputs."""
        self.unclaimed.pop(address, None)
        if self._log.module(number):
            return
        known = map(self._number_of, addresses(_made_from(inputs, place)))
        names = (self._log.module(other) for other in known if other is not None)
        if module := next(filter(None, names), ""):
            self._log.rename(number, module)
        else:
            self.unclaimed[address] = number

    def used(self, inputs: Any, module: str) -> None:
        """A module's forward uses these: what belongs to no module is its."""
        for address in addresses(inputs):
            number = self.unclaimed.pop(address, None)
            if number is not None:
                self._log.rename(number, module)

    def held(self, address: int, module: str) -> None:
        """A module holds the storage as a parameter or buffer."""
        self.unclaimed.pop(address, None)
        if (number := self._number_of(address)) is not None:
            self._log.rename(number, module)


def addresses(inputs: Any) -> Iterator[int]:
    """Of the storages of an operator's inputs."""
    for tensor in tensors(inputs):
        if tensor.layout is torch.strided and not dispatches_itself(tensor):
            yield tensor.untyped_storage()._cdata


def _made_from(inputs: Any, place: int) -> Any:
    """What a result was made from: of operators over lists, the element in its place."""
    args, _ = inputs
    first = args[0] if args else None
    return first[place] if isinstance(first, list | tuple) and place < len(first) else inputs
