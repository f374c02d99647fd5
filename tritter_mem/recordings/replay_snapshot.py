"""`replay`: a recorded snapshot under other allocator settings, without the job and the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace as replaced
from pathlib import Path

from tritter_mem.allocator.rules import round_request, segment_bytes
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.allocator.snapshot_file import load_snapshot
from tritter_mem.errors import InputError, UsageError
from tritter_mem.recordings.fidelity import CONTRADICTIONS, verify
from tritter_mem.recordings.memory_history import History, make_history
from tritter_mem.recordings.scenarios import (
    EXPANDABLE,
    Plan,
    advise,
    held_at_peak,
    plans_for,
    run_scenario,
    segments_at_peak,
)
from tritter_mem.results.allocations import Allocations, shortened
from tritter_mem.results.header import header
from tritter_mem.results.replay import DeviceReplay, Replay, Scenario

MOST_ALLOCATIONS = 400
"""How many call stacks a record has; beyond, those with least lose inner frames."""
# Called with how much of the work is done, from 0 to 1.
OnProgress = Callable[[float], None]


def replay(
    snapshot: str | Path,
    *,
    alloc_confs: Sequence[str] = (),
    capacity_bytes: int | None = None,
    segment_maps: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> Replay:
    """Replay a PyTorch memory snapshot with its own and with other allocator settings.

    Args:
        snapshot: a file that `torch.cuda.memory._dump_snapshot` wrote, with history.
        alloc_confs: further settings to try, each as in `PYTORCH_CUDA_ALLOC_CONF`.
        capacity_bytes: what segments may take on each device. Default: no limit, or what an
            out-of-memory event in the recording says.
        segment_maps: also keep every scenario's segments at its peak.
        on_progress: called with how much is done, from 0 to 1.

    Raises:
        InputError: the file is no snapshot, or holds no history.
        ConfigError: one of `alloc_confs` is wrong.
        UsageError: the capacity is not positive.
    """
    if capacity_bytes is not None and capacity_bytes <= 0:
        raise UsageError(f"capacity: got {capacity_bytes} bytes, expected a positive size")
    for conf in alloc_confs:  # before minutes of loading
        parse_alloc_conf(conf)
    histories = _histories(Path(snapshot))
    work = _Work(histories, alloc_confs, on_progress)
    devices = []
    for history, plans in work.jobs:
        with consistent(history.device):
            devices.append(_replay_device(history, plans, capacity_bytes, segment_maps, work))
    return Replay(
        snapshot=str(snapshot),
        **header(),
        devices=tuple(devices),
    )


@contextmanager
def consistent(device: int) -> Iterator[None]:
    """Replay a history that may contradict itself: no allocator does what it says.

    Blocks and segments may overlap, or be freed where there are none. To look for that before every
    step would take longer than to replay, and histories as PyTorch records them never do it.

    Raises:
        InputError: the replay met with such a contradiction.
    """
    try:
        yield
    except CONTRADICTIONS as error:
        raise InputError(
            f"device_traces[{device}]: the history contradicts itself: segments or blocks overlap, "
            "or are freed without having been allocated; record it again"
        ) from error


def _histories(path: Path) -> list[History]:
    devices = load_snapshot(path)
    histories = [make_history(device) for device in devices if len(device.trace)]
    if histories:
        return histories
    segments = sum(len(device.segments) for device in devices)
    raise InputError(
        f"{path}: no history to replay ({segments:,} segments at the end); call "
        "torch.cuda.memory._record_memory_history() before the work to record"
    )


class _Work:
    """What is to be done, and how much of it is."""

    def __init__(
        self, histories: Sequence[History], alloc_confs: Sequence[str], on_progress: OnProgress
    ) -> None:
        self.jobs = [(history, plans_for(history, alloc_confs)) for history in histories]
        self._total = sum(len(h.steps) * (1 + len(plans)) for h, plans in self.jobs) or 1
        self._done = 0
        self._on_progress = on_progress

    def progress(self, steps: int) -> None:
        self._done += steps
        self._on_progress(min(self._done / self._total, 1.0))


def _replay_device(history: History, plans: Sequence[Plan], capacity_bytes: int | None,
                   segment_maps: bool, work: _Work) -> DeviceReplay:  # fmt: skip
    replayed, fidelity = verify(history, work.progress)
    capacity, source = _capacity(history, capacity_bytes)
    scenarios = [run_scenario(history, plan, capacity, work.progress) for plan in plans]
    if segment_maps:
        scenarios = [
            replaced(s, segments_at_peak=segments_at_peak(history, plan, s, capacity))
            for plan, s in zip(plans, scenarios, strict=True)
        ]
    held = held_at_peak(history, plans[0], scenarios[0], capacity)
    return DeviceReplay(
        device=history.device,
        recorded=history.recorded,
        replayed=replayed,
        fidelity=fidelity,
        recorded_conf=history.settings.conf,
        recorded_events=history.recorded_events,
        capacity_bytes=capacity,
        capacity_source=source,
        scenarios=tuple(scenarios),
        advice=advise(
            scenarios,
            capacity,
            _needed(history, plans, scenarios),
            ran_out=bool(history.failures),
        ),
        warnings=tuple(history.warnings),
        held_at_peak=_shortened(held.by_stack),
        held_by_module=_shortened(held.by_module),
    )


def _shortened(found: Allocations | None) -> Allocations | None:
    return None if found is None else shortened(found, MOST_ALLOCATIONS)


def _capacity(history: History, given: int | None) -> tuple[int | None, str | None]:
    """The capacity that was given, or that follows from the first recorded out-of-memory event."""
    if given is not None:
        return given, "given"
    if not history.failures:
        return None, None
    failure = history.failures[0]
    number = history.numbers[failure.step]
    size = round_request(history.sizes[number], history.settings.roundup_power2_divisions)
    wanted = segment_bytes(size, history.settings.large_segment_bytes)
    # Below the limit of a memory fraction the device may have had more free than was allowed.
    room = min(failure.device_free_bytes, wanted - 1)
    return failure.reserved_bytes + room, "recorded"


def _needed(
    history: History, plans: Sequence[Plan], scenarios: Sequence[Scenario]
) -> Scenario | None:
    """Where nothing fits: what the job needs with expandable segments, which waste least."""
    if any(scenario.fits for scenario in scenarios):
        return None
    plan = next((plan for plan in plans if plan.name == EXPANDABLE), plans[0])
    return run_scenario(history, plan, None, lambda _: None)
