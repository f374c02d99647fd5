"""Simulation: the real model's memory on a card, without the card.

The model runs on PyTorch's `meta` device, where tensors have shapes and no bytes. Every storage
that comes and goes is recorded, and the events are played through PyTorch's caching allocator,
simulated.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tritter_mem.allocator.caching_allocator import OutOfMemoryError
from tritter_mem.allocator.settings import AllocatorSettings, parse_alloc_conf
from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.bundled import run_settings
from tritter_mem.planner.compose import budget_of
from tritter_mem.results.run import MemoryUse, Phase, Timeline
from tritter_mem.simulation.cuda.libraries import Libraries, is_workspace
from tritter_mem.simulation.events import EventLog
from tritter_mem.simulation.peaks import Peaks, find_peaks
from tritter_mem.simulation.playback import (
    Limit,
    Played,
    find_out_of_memory,
    play,
    segments_at,
    surely_fits,
)
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.trace_file import save_log
from tritter_model.config import RunConfig

if TYPE_CHECKING:
    from tritter_mem.simulation.recorder import Recorder

PhaseHook = Callable[[str], AbstractContextManager[None]]
Workload = Callable[[str, PhaseHook], None]
"""Runs a whole case on a device, and enters the hook around each of its phases."""
Run = Callable[[str, "Recorder"], None]
"""Runs a whole case on a device, and tells the recorder of its phases and of its memory."""


def simulate(
    profile: Profile, *, fast: bool = False, progress: Progress | None = None,
    save_trace: Path | None = None, card: GpuCard | None = None, budget_bytes: int | None = None,
) -> MemoryUse:  # fmt: skip
    """Simulate the bundled model under a profile, on the profile's card.

    Args:
        profile: a resolved profile.
        fast: leave out the chunks and tokens of inference that take the memory of those before
            them, rather than run them all.
        progress: told how far the run is.
        save_trace: where to write the run's events, see `files.save_log`.
        card: the card to stand for, where it is not the profile's.
        budget_bytes: what may be used of it, where it is not the profile's budget.

    Raises:
        ConfigError: the card or the allocator's settings are unknown.
        OutputError: the trace cannot be written.
    """
    card = card or find_gpu(profile.gpu.name)
    workload = bundled_workload(profile, card, progress or Progress(), fast)
    budget = budget_bytes or budget_of(profile, card)
    conf = profile.allocator.conf
    use = simulate_workload(workload, card, conf, save_trace, budget_bytes=budget)
    return replace(use, shortened=fast)


def bundled_workload(
    profile: Profile, card: GpuCard, progress: Progress, fast: bool = False
) -> Workload:
    """The bundled model under a profile, for `simulate_workload`."""
    return case_workload(replace(run_settings(profile, card), shortened=fast), progress)


def case_workload(case: RunConfig, progress: Progress) -> Workload:
    """The bundled model under a case's settings, for `simulate_workload`."""

    def workload(device: str, phase: PhaseHook) -> None:
        from tritter_model.run import run

        with progress.following(case):
            run(case, device, both(progress.entering, phase))

    return workload


def both(outer: PhaseHook, inner: PhaseHook) -> PhaseHook:
    """A hook that enters two."""

    @contextmanager
    def entered(phase: str) -> Iterator[None]:
        with outer(phase), inner(phase):
            yield

    return entered


def simulate_workload(
    workload: Workload,
    card: GpuCard,
    allocator_conf: str = "",
    save_trace: Path | None = None,
    *,
    budget_bytes: int | None = None,
) -> MemoryUse:
    """Simulate anything that runs on `meta`; see `simulate_run`.

    Args:
        workload: what to run.
        card: the card to stand for: its libraries' workspaces, its memory, its context.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        save_trace: where to write the run's events; nowhere without it.
        budget_bytes: what may be used of the card; None: there is no cap.
    """
    run = _phases_only(workload)
    return simulate_run(run, card, allocator_conf, save_trace, budget_bytes=budget_bytes)


def simulate_run(
    run: Run,
    card: GpuCard,
    allocator_conf: str = "",
    save_trace: Path | None = None,
    *,
    budget_bytes: int | None = None,
) -> MemoryUse:
    """Simulate anything that runs on `meta` and tells the recorder more than its phases.

    Args:
        run: what to run.
        card: the card to stand for: its libraries' workspaces, its memory, its context.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        save_trace: where to write the run's events; nowhere without it.
        budget_bytes: what may be used of the card. Where the allocator would cache more, it gives
            cached memory back, as PyTorch's does at a cap; None: there is no cap.
    """
    card.require_cuda()
    settings = parse_alloc_conf(allocator_conf)
    log = _record(run, card)
    if save_trace is not None:
        save_log(log, save_trace)
    whole = Limit(card.total_bytes, card.context_bytes)
    played, limit = _play_within(log, settings, budget_bytes, card)
    peaks = find_peaks(played.log, requested=log)
    fits = limit is not None or surely_fits(played, settings, whole)
    return replace(
        _use(peaks, played, card),
        library_workspace_bytes=log.live_bytes(peaks.peak_level, is_workspace),
        out_of_memory=None if fits else find_out_of_memory(log, settings, whole),
        segments=segments_at(log, settings, peaks.peak_level, limit),
    )


def _play_within(
    log: EventLog, settings: AllocatorSettings, budget_bytes: int | None, card: GpuCard
) -> tuple[Played, Limit | None]:
    """A run without a limit; within the budget where that makes a difference, and it suffices."""
    played = play(log, settings)
    if budget_bytes is None:
        return played, None
    limit = Limit(budget_bytes, card.context_bytes)
    if surely_fits(played, settings, limit):
        return played, None
    try:
        return play(log, settings, limit), limit
    except OutOfMemoryError:
        return played, None


def trace(workload: Workload, card: GpuCard) -> EventLog:
    """Record a run on `meta`, with what the card's libraries would allocate."""
    return _record(_phases_only(workload), card)


def _phases_only(workload: Workload) -> Run:
    return lambda device, recorder: workload(device, recorder.phase)


def _record(run: Run, card: GpuCard) -> EventLog:
    import torch

    from tritter_mem.simulation.recorder import Recorder

    libraries = Libraries(card, lambda: torch._C._current_graph_task_id() != -1)
    with Recorder("meta", libraries) as recorder:
        run("meta", recorder)
    return recorder.log


def _use(peaks: Peaks, played: Played, card: GpuCard) -> MemoryUse:
    reserved = played.reserved_peak_bytes[""]
    return MemoryUse(
        device=card.name,
        components=peaks.components,
        phases=tuple(_with_reserved(phase, played) for phase in peaks.phases),
        allocated_peak_bytes=peaks.allocated_peak_bytes,
        peak_at=peaks.peak_at,
        held_at_peak=peaks.held,
        reserved_peak_bytes=reserved,
        context_bytes=card.context_bytes,
        device_peak_bytes=reserved + card.context_bytes,
        cache_releases=played.releases,
        fragmentation=played.fragmentation,
        timeline=_timeline_with_reserved(peaks.timeline, played.reserved),
    )


def _with_reserved(phase: Phase, played: Played) -> Phase:
    return replace(phase, reserved_peak_bytes=played.reserved_peak_bytes[phase.name])


def _timeline_with_reserved(timeline: Timeline, reserved: list[tuple[int, int]]) -> Timeline:
    """The timeline with what was reserved after each of its events."""
    starts = [event for event, _ in reserved]
    event, phase, allocated, *parts = timeline.columns
    return Timeline(
        columns=(event, phase, allocated, "reserved_bytes", *parts),
        rows=tuple(
            (*row[:3], reserved[bisect_right(starts, row[0]) - 1][1], *row[3:])
            for row in timeline.rows
        ),
    )
