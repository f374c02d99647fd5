"""The recorded run on a device: where the bytes are, and how they lie at the reserved peak.

The recorder sees tensors, the allocator's history sees every request. Both are noted at the end of
each operator, and put together by that. What comes of it completes the measured run of the same
work, where both went the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tritter_mem.allocator.snapshot import ALLOC, FREE_REQUESTED, DeviceSnapshot, Trace
from tritter_mem.devices.device import Calls, Device
from tritter_mem.errors import MeasureError
from tritter_mem.recordings.fidelity import verify
from tritter_mem.recordings.memory_history import DO_ALLOC, DO_RETRY, History, make_history
from tritter_mem.recordings.scenarios import plans_for, run_scenario
from tritter_mem.results.replay import Scenario
from tritter_mem.results.run import Components, DeviceRun, MemoryUse, Phase
from tritter_mem.simulation.events import Event, EventLog, Span
from tritter_mem.simulation.peaks import find_peaks
from tritter_mem.simulation.playback import play
from tritter_mem.simulation.recorder import Recorder
from tritter_model import labels
from tritter_model.labels import WORKSPACE

if TYPE_CHECKING:
    from torch import Tensor

    from tritter_mem.simulation.operators import Operator


SOURCE = "the recorded run: its allocator's history, replayed to the reserved peak"
_NEVER = 1 << 62


class Boundary(NamedTuple):
    """Where one operator of a run ends and the next begins.

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


class HistoryRecorder(Recorder):
    """Records a run on a device whose allocator keeps its history meanwhile.

    Args:
        device: where the run is.

    Attributes:
        boundaries: where the allocator or the recorder went on, in order.
        spans: the phases, by calls of the allocator in place of events of the log.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device.name)
        self.boundaries = [Boundary(0, 0, "", "", "")]
        self.spans: list[Span] = []
        self._on = device
        self._before = device.calls()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note a phase of the run."""
        start = self._calls()
        try:
            with super().phase(name):
                yield
        finally:
            self.spans.append(Span(name, sum(start), sum(self._calls())))

    def adopt(self, tensor: Tensor, category: str) -> None:
        """Account a tensor's storage to a category."""
        super().adopt(tensor, category)
        self._note_boundary("")

    def _ran(self, operator: Operator, inputs: Any, result: Any) -> None:
        super()._ran(operator, inputs, result)
        self._note_boundary(operator.name)

    def _note_boundary(self, operator: str) -> None:
        at = self._calls().allocations, self.log.storages
        if at != self.boundaries[-1][:2]:
            place = labels.current_place()
            self.boundaries.append(Boundary(*at, operator, self._module.running, place))

    def _calls(self) -> Calls:
        now, before = self._on.calls(), self._before
        return Calls(now.allocations - before.allocations, now.frees - before.frees)


@dataclass(frozen=True, slots=True)
class MergedEvents:
    """Every request of a run, with the tensor that it was for where there is one.

    Attributes:
        log: storages are numbered as the allocator's requests are.
        inside: the storages that no tensor holds.
    """

    log: EventLog
    inside: frozenset[int]


class _Request(NamedTuple):
    """One request of the allocator; `freed` is the request count at which its block went."""

    size: int
    freed: int


def merge(
    log: EventLog, boundaries: Sequence[Boundary], spans: Sequence[Span], trace: Trace
) -> MergedEvents:
    """Put what the recorder and the allocator saw together.

    Args:
        log: of the recorder.
        boundaries: which storages and which requests belong to which operator.
        spans: the phases, by the allocator's calls.
        trace: the allocator's history of the same run, from its beginning on.
    """
    requests = _requests(trace)
    seen = [event for event in log if event.kind == "alloc"]
    tensors: dict[int, Event] = {}
    inside: dict[int, Boundary] = {}
    for before, boundary in pairwise([*boundaries, _end(boundaries, requests)]):
        own = range(before.allocations, boundary.allocations)
        found = _matched(seen[before.storages : boundary.storages], own, requests)
        tensors |= found
        inside |= {number: boundary for number in own if number not in found}
    merged = EventLog()
    for number, came in _calls(trace):
        if not came:
            merged.free(number, module="")
        elif number in tensors:
            _append(merged, requests[number].size, tensors[number])
        else:
            _append(merged, requests[number].size, _inside(inside[number]))
    merged.spans += spans
    return MergedEvents(merged, frozenset(inside))


def _end(boundaries: Sequence[Boundary], requests: Sequence[_Request]) -> Boundary:
    """What came after the last operator."""
    return boundaries[-1]._replace(allocations=len(requests), operator="", module="")


def _calls(trace: Trace) -> Iterator[tuple[int, bool]]:
    """Each request with its number and True, each free with the number of its request."""
    at: dict[int, int] = {}
    count = 0
    for action, address in zip(trace.actions, trace.addresses, strict=True):
        if action == ALLOC:
            at[address] = count
            yield count, True
            count += 1
        elif action == FREE_REQUESTED:
            yield at.pop(address), False


def _requests(trace: Trace) -> list[_Request]:
    sizes = [s for a, s in zip(trace.actions, trace.sizes, strict=True) if a == ALLOC]
    freed: dict[int, int] = {}
    count = 0
    for number, came in _calls(trace):
        count += came
        if not came:
            freed[number] = count
    return [_Request(size, freed.get(number, _NEVER)) for number, size in enumerate(sizes)]


def _matched(seen: Sequence[Event], own: range, requests: Sequence[_Request]) -> dict[int, Event]:
    """An operator's tensors by the number of their requests.

    Of several requests of a tensor's size, one that outlived the operator is taken: scratch does
    not.
    """
    left = sorted(own, key=lambda number: (requests[number].freed <= own.stop, number))
    found = {}
    for event in seen:
        number = next((n for n in left if requests[n].size == event.bytes), None)
        if number is not None:  # else the storage is older than the operator
            left.remove(number)
            found[number] = event
    return found


def _inside(boundary: Boundary) -> Event:
    operator = f"inside {boundary.operator}" if boundary.operator else ""
    return Event("alloc", 0, 0, operator, boundary.module, "", WORKSPACE, boundary.place)


def _append(log: EventLog, size: int, event: Event) -> None:
    number = log.alloc(size, operator=event.operator, module=event.module, category=event.category)
    if event.place:
        log.places[number] = event.place


def memory_use_of(
    recorder: HistoryRecorder, snapshot: DeviceSnapshot, device: str, run: DeviceRun
) -> MemoryUse:
    """What a recorded run comes to.

    Args:
        recorder: which saw the tensors.
        snapshot: the allocator's history of the same run.
        device: such as `cuda:0`.
        run: what else was read; the peak of what was asked for, and where fragmentation comes from,
            are filled in here.
    """
    merged = merge(recorder.log, recorder.boundaries, recorder.spans, snapshot.trace)
    played = play(merged.log, snapshot.settings)
    peaks = find_peaks(played.log, requested=merged.log)
    asked = find_peaks(merged.log).allocated_peak_bytes
    run = replace(run, allocator=replace(run.allocator, requested_peak_bytes=asked))
    use = MemoryUse(
        device=device,
        components=peaks.components,
        phases=peaks.phases,
        allocated_peak_bytes=peaks.allocated_peak_bytes,
        peak_at=peaks.peak_at,
        held_at_peak=peaks.held,
        timeline=peaks.timeline,
        library_workspace_bytes=_live_inside(merged, peaks.peak_level),
        run=run,
    )
    return _with_fragmentation(use, snapshot, run)


def _live_inside(merged: MergedEvents, level: int) -> int:
    """Bytes of what no tensor held, after so many events."""
    return sum(
        size if came else -size
        for storage, came, size in merged.log.requests(0, level)
        if storage in merged.inside
    )


def _with_fragmentation(use: MemoryUse, snapshot: DeviceSnapshot, run: DeviceRun) -> MemoryUse:
    try:
        peak = replay_to_peak(snapshot)
    except MeasureError as error:
        return replace(use, run=replace(run, fragmentation_reason=str(error)))
    if not peak.reserved_peak_bytes:  # memory ran out at the first request
        return replace(use, reserved_peak_bytes=0)
    return replace(
        use,
        reserved_peak_bytes=peak.reserved_peak_bytes,
        fragmentation=peak.fragmentation,
        run=replace(run, fragmentation_source=SOURCE),
    )


def replay_to_peak(snapshot: DeviceSnapshot) -> Scenario:
    """Replay a device's history under the settings that it was recorded with.

    Where memory ran out, up to there.

    Raises:
        MeasureError: the replay is not what was recorded; says how far off.
    """
    history = _up_to_failure(make_history(snapshot))
    _, fidelity = verify(history, _no_progress)
    if not fidelity.exact:
        raise MeasureError(
            "the allocator's history does not replay as recorded: "
            f"{fidelity.segments_missed + fidelity.segments_extra:,} segments differ, and "
            f"{fidelity.addresses_total - fidelity.addresses_matched:,} of "
            f"{fidelity.addresses_total:,} blocks lie elsewhere"
        )
    recorded, *_ = plans_for(history, ())
    return run_scenario(history, recorded, None, _no_progress)


def _up_to_failure(history: History) -> History:
    """Without the request that ran out of memory, and what came after it."""
    if not history.failures:
        return history
    end = history.failures[0].step
    served = history.steps[:end]
    allocations = served.count(DO_ALLOC) + served.count(DO_RETRY)
    return replace(
        history,
        steps=served,
        numbers=history.numbers[:end],
        events=history.events[:end],
        recorded=replace(history.recorded, allocations=allocations),
    )


def _no_progress(steps: int) -> None:
    """Nobody waits for the progress."""


def with_components(measured: MemoryUse, recorded: MemoryUse) -> MemoryUse:
    """Say where the measured bytes are.

    Args:
        measured: by the allocator.
        recorded: the same work under the recorder, which saw every tensor.

    Returns:
        What was measured with components, of the whole run and of each phase; without them,
        and with the reason, where the two runs do not agree.
    """
    run, other = measured.run, recorded.run
    if run is None or other is None:
        return measured
    own = {phase.name: phase for phase in recorded.phases}
    asked = run.allocator.requested_peak_bytes, other.allocator.requested_peak_bytes
    if asked[0] != asked[1] or {phase.name for phase in measured.phases} != set(own):
        return replace(measured, run=replace(run, components_reason=_disagreement(recorded, asked)))
    same = recorded.allocated_peak_bytes == measured.allocated_peak_bytes
    return replace(
        measured,
        components=_settled(recorded.components, measured.allocated_peak_bytes),
        library_workspace_bytes=recorded.library_workspace_bytes,
        phases=tuple(_with_parts(phase, own[phase.name]) for phase in measured.phases),
        peak_at=recorded.peak_at,
        timeline=recorded.timeline,
        held_at_peak=recorded.held_at_peak if same else (),
    )


def with_fragmentation(measured: MemoryUse, recorded: MemoryUse) -> MemoryUse:
    """Say how memory was fragmented at the reserved peak, where both runs reserved the same.

    Args:
        measured: by the allocator.
        recorded: the same work, with the allocator's history on.

    Returns:
        What was measured with it; or with the reason.
    """
    run, other = measured.run, recorded.run
    if run is None or other is None:
        return measured
    reason = other.fragmentation_reason
    if reason is None and recorded.reserved_peak_bytes != measured.reserved_peak_bytes:
        reason = (
            f"the recorded run reserved {recorded.reserved_peak_bytes or 0:,} bytes, "
            f"the measured one {measured.reserved_peak_bytes or 0:,}"
        )
    if reason is not None:
        return replace(measured, run=replace(run, fragmentation_reason=reason))
    source = other.fragmentation_source
    return replace(
        measured,
        fragmentation=recorded.fragmentation,
        run=replace(run, fragmentation_source=source),
    )


def _disagreement(recorded: MemoryUse, asked: tuple[int, int]) -> str:
    return (
        f"the recorded run took another path: it asked for {asked[1]:,} bytes at most, in "
        f"{', '.join(phase.name for phase in recorded.phases) or 'no phase'}, the measured one for "
        f"{asked[0]:,}"
    )


def _with_parts(phase: Phase, recorded: Phase) -> Phase:
    if recorded.components is None:
        return phase
    return replace(phase, components=_settled(recorded.components, phase.allocated_peak_bytes))


def _settled(recorded: Components, allocated_bytes: int) -> Components:
    """The parts, so that they sum to what was allocated.

    What is rounded up may differ where one of the two runs gave cached memory back: a block that
    comes from another segment may be left whole.
    """
    asked = recorded.total_bytes - recorded.rounding_bytes
    return replace(recorded, rounding_bytes=allocated_bytes - asked)
