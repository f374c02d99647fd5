"""Records every storage that a run allocates and frees, on the CPU or on `meta`.

A storage's first sight in an operator's output is its allocation, the end of the storage object its
free. PyTorch keeps one Python object for a storage as long as any tensor, view or autograd node
holds it, so the object's end is the storage's end, and Python's and autograd's reference counts
give the order of frees that a run on a GPU has.

Out of sight stays what an operator allocates inside, which is why the bundled model's operators
allocate nothing inside, and `storage.resize_()`, which no operator makes: it is noticed at the next
operator that returns a tensor of the storage. On the CPU, what a run on a GPU would keep on the
host counts too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

import torch
from torch.nn.parameter import is_lazy

from tritter_mem.simulation.cuda.libraries import CUBLAS_OPERATORS, Libraries
from tritter_mem.simulation.cuda.scratch import RULES as SCRATCH_RULES
from tritter_mem.simulation.cuda.scratch import scratch_bytes
from tritter_mem.simulation.events import EventLog, Span
from tritter_mem.simulation.operators import Operator, OperatorMode, dispatches_itself, tensors
from tritter_mem.simulation.ownership import ModulePath, Owners, addresses
from tritter_model import labels

_FOREIGN = "storages from before the recording, not adopted and not counted"
_OWN_LAYOUT = "tensors with their own layout or dispatch (sparse, subclasses), not counted"


class Recorder:
    """Records memory events while it is entered; once.

    Only tensors on one device count. Memory from before the recording counts from the moment it is
    handed to `adopt`. The log grows by about 25 bytes an event.

    Args:
        device: the device whose storages count: `cpu`, `meta`, or any other.
        libraries: what libraries of the simulated card allocate, recorded too; None: nothing.

    Attributes:
        log: the events so far.
        allocated_bytes: live bytes now.
        peak_bytes: the largest `allocated_bytes` since the start or the last `reset_peak`.
    """

    def __init__(
        self, device: str | torch.device = "cpu", libraries: Libraries | None = None
    ) -> None:
        self._libraries = libraries
        self.log = EventLog()
        self.allocated_bytes = 0
        self.peak_bytes = 0
        self._device = torch.empty(0, device=device).device  # with its index: cuda is cuda:0
        self._live: dict[int, _Tracked] = {}
        self._operators = OperatorMode(self._ran)
        self._module = ModulePath(self._holds)
        self._owners = Owners(self.log, self._number)
        self._phase = ""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._device.type == "meta":
            self._stack.enter_context(patch.object(torch.cuda, "empty_cache", self.log.empty_cache))
        self._module.__enter__()
        self._operators.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._operators.__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        self._module.__exit__(kind, error, traceback)
        self._stack.close()
        self._live.clear()  # with the weak references goes their wish to be told

    def adopt(self, tensor: torch.Tensor, category: str) -> None:
        """Account a tensor's storage to a category, whether or not it was recorded before.

        Args:
            tensor: any tensor; a storage that was not seen so far counts as allocated now.
            category: one of `results.COMPONENTS`. For a storage that was seen it replaces the
                category, from the allocation on.
        """
        if is_lazy(tensor) or not self._counts(tensor):  # a lazy one has no storage yet
            return
        storage = tensor.untyped_storage()
        tracked = self._live.get(storage._cdata) or self._track(storage)
        if tracked.number is None:
            with labels.label(category):
                self._resized(tracked, storage.nbytes(), "adopt")
        else:
            self.log.recategorise(tracked.number, category)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Mark a phase of the run: load, prefill, decode, or forward, backward, optimizer.

        Raises:
            RuntimeError: another phase is running; phases do not nest.
        """
        if self._phase:
            raise RuntimeError(f"phase {name!r} begins inside phase {self._phase!r}")
        self._phase = name
        start = len(self.log)
        try:
            yield
        finally:
            self._phase = ""
            self.log.spans.append(Span(name, start, len(self.log)))

    def reset_peak(self) -> None:
        """Begin a new `peak_bytes` at what is live now."""
        self.peak_bytes = self.allocated_bytes

    def _counts(self, tensor: torch.Tensor) -> bool:
        if tensor.device != self._device:
            return False
        if tensor.layout is torch.strided and not dispatches_itself(tensor):
            return True
        self.log.note(_OWN_LAYOUT)
        return False

    def _ran(self, operator: Operator, inputs: Any, result: Any) -> None:
        if self._owners.unclaimed and self._module.current:
            self._owners.used(inputs, self._module.current)
        counts = False
        # Most operators return one tensor: no generator for it.
        results = (result,) if isinstance(result, torch.Tensor) else tensors(result)
        for place, tensor in enumerate(results):
            if self._counts(tensor):
                counts = True
                self._saw(tensor.untyped_storage(), operator, inputs, place)
        if counts and self._libraries is not None:
            self._beside_results(self._libraries, operator.name, inputs)

    def _beside_results(self, libraries: Libraries, operator: str, inputs: Any) -> None:
        """What a card allocates for an operator beside its results, which no run here shows."""
        if operator in CUBLAS_OPERATORS or operator in SCRATCH_RULES:
            with labels.label(labels.WORKSPACE):
                held = self._workspaces(libraries, operator, inputs)
                self._inside(operator, scratch_bytes(libraries.card, operator, *inputs), held)

    def _workspaces(
        self, libraries: Libraries, operator: str, inputs: Any
    ) -> list[tuple[int, int]]:
        """Workspaces that come; those that go with the operator."""
        came = [
            (self._came(size, f"{library}, {operator}"), size)
            for library, size in libraries.newly_held(operator, *inputs)
        ]
        return [] if libraries.keep else came

    def _inside(self, operator: str, sizes: Iterator[int], held: list[tuple[int, int]]) -> None:
        """Scratch that comes (+) and goes (-) in order; what is left, and held, goes at the end."""
        for size in filter(None, sizes):
            if size > 0:
                held.append((self._came(size, f"inside {operator}"), size))
            else:
                self._freed(*held.pop(_last(held, -size)))
        for number, size in held:
            self._freed(number, size)

    def _saw(
        self, storage: torch.UntypedStorage, operator: Operator, inputs: Any, place: int
    ) -> None:
        tracked = self._live.get(storage._cdata)
        size = storage.nbytes()
        if tracked is None:
            tracked = self._track(storage)
            if operator.returns_input and storage._cdata in addresses(inputs):
                self.log.note(_FOREIGN)
                tracked.nbytes = size
        if tracked.nbytes != size:
            self._resized(tracked, size, operator.name)
            if tracked.number is not None:
                self._owners.came(tracked.address, tracked.number, inputs, place)

    def _track(self, storage: torch.UntypedStorage) -> _Tracked:
        tracked = _Tracked(storage, self._died)
        tracked.address = storage._cdata
        tracked.nbytes = 0
        tracked.number = None
        self._live[tracked.address] = tracked
        return tracked

    def _resized(self, tracked: _Tracked, nbytes: int, operator: str) -> None:
        """A storage got its bytes, or others: PyTorch takes the new before it frees the old."""
        old_number, old_bytes = tracked.number, tracked.nbytes
        number = self._came(nbytes, operator) if nbytes else None
        tracked.number, tracked.nbytes = number, nbytes
        if old_number is not None:
            self._freed(old_number, old_bytes)

    def _came(self, nbytes: int, operator: str) -> int:
        number = self.log.alloc(
            nbytes, operator=operator, module=self._module.running, category=labels.current()
        )
        if place := labels.current_place():
            self.log.places[number] = place
        self.allocated_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        return number

    def _died(self, tracked: _Tracked) -> None:
        del self._live[tracked.address]
        self._owners.unclaimed.pop(tracked.address, None)
        if tracked.number is not None:
            self._freed(tracked.number, tracked.nbytes)

    def _freed(self, number: int, nbytes: int) -> None:
        self.log.free(number, module=self._module.running or self.log.module(number))
        self.allocated_bytes -= nbytes

    def _holds(self, tensor: torch.Tensor, module: str) -> None:
        if not is_lazy(tensor) and self._counts(tensor):
            self._owners.held(tensor.untyped_storage()._cdata, module)

    def _number(self, address: int) -> int | None:
        tracked = self._live.get(address)
        return None if tracked is None else tracked.number


def _last(held: list[tuple[int, int]], nbytes: int) -> int:
    """Place of the last block of this size."""
    return max(place for place, (_, size) in enumerate(held) if size == nbytes)


class _Tracked(weakref.ref[torch.UntypedStorage]):
    """A weak reference to a live storage, with what is known of it.

    Attributes:
        address: of the storage in C++, which is its key.
        nbytes: its size when it was last seen.
        number: its number in the log; None while it holds nothing that counts.
    """

    __slots__ = ("address", "nbytes", "number")
    address: int
    nbytes: int
    number: int | None
