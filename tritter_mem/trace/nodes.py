"""Which module's forward made the autograd node that the backward pass runs now."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right

import torch
from torch.autograd import _get_sequence_nr  # type: ignore[attr-defined]

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
