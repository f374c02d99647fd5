"""A recorder that notes, operator by operator, how far the device's own allocator has come.

The recorder sees tensors, the allocator's history every request; the marks tell which requests an
operator made, and so what it and its libraries allocated beside tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tritter_mem.measure.meter import Calls, Meter
from tritter_mem.trace.events import Span
from tritter_mem.trace.recorder import Recorder
from tritter_model import labels

if TYPE_CHECKING:
    from torch import Tensor

    from tritter_mem.trace.operators import Operator


class Mark(NamedTuple):
    """A point of a run, at the end of an operator.

    Attributes:
        allocations: that the allocator has served since the recording began.
        storages: that the recorder has seen since.
        operator: which ended here.
        module: that ran it; empty outside of any.
        place: where it allocated, as in `EventLog.places`.
    """

    allocations: int
    storages: int
    operator: str
    module: str
    place: str


class MarkedRecorder(Recorder):
    """Records a run on a device whose allocator keeps its history meanwhile.

    Args:
        meter: the device.

    Attributes:
        marks: where the allocator or the recorder went on, in order.
        spans: the phases, by calls of the allocator in place of events of the log.
    """

    def __init__(self, meter: Meter) -> None:
        super().__init__(meter.name)
        self.marks = [Mark(0, 0, "", "", "")]
        self.spans: list[Span] = []
        self._meter = meter
        self._before = meter.calls()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Mark a phase of the run."""
        start = self._calls()
        try:
            with super().phase(name):
                yield
        finally:
            self.spans.append(Span(name, sum(start), sum(self._calls())))

    def adopt(self, tensor: Tensor, category: str) -> None:
        """Account a tensor's storage to a category."""
        super().adopt(tensor, category)
        self._mark("")

    def _ran(self, operator: Operator, inputs: Any, result: Any) -> None:
        super()._ran(operator, inputs, result)
        self._mark(operator.name)

    def _mark(self, operator: str) -> None:
        at = self._calls().allocations, self.log.storages
        if at != self.marks[-1][:2]:
            self.marks.append(Mark(*at, operator, self._module.running, labels.current_place()))

    def _calls(self) -> Calls:
        now, before = self._meter.calls(), self._before
        return Calls(now.allocations - before.allocations, now.frees - before.frees)
