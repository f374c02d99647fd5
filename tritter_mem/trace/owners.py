"""Whose a storage is: the module that it belongs to.

A parameter or buffer belongs to the first module that holds it, other memory to the module whose
forward or backward pass allocated it. What was allocated outside of any module belongs where the
first of the operator's inputs does: an optimizer's state goes to the parameter's module, a loss to
the module whose output it is made from. Where they belong to none either, as for a key-value cache,
the first module whose forward uses the storage has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tritter_mem.trace.events import EventLog
from tritter_mem.trace.operators import dispatches_itself, tensors


class Owners:
    """Gives the storages of a log to modules.

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
