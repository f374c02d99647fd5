"""The recorded run on a device as an estimate: where the bytes are, and how they lie."""

from __future__ import annotations

from dataclasses import replace

from tritter_mem.allocator.snapshot_in import DeviceSnapshot
from tritter_mem.errors import MeasureError
from tritter_mem.measure.at_peak import replay_to_peak
from tritter_mem.measure.marks import MarkedRecorder
from tritter_mem.measure.merge import Merged, merge
from tritter_mem.results import DeviceRun, Estimate
from tritter_mem.trace.peaks import find_peaks
from tritter_mem.trace.playback import play

SOURCE = "the recorded run: its allocator's history, replayed to the reserved peak"


def estimate_of(
    recorder: MarkedRecorder, snapshot: DeviceSnapshot, device: str, run: DeviceRun
) -> Estimate:
    """What a recorded run comes to.

    Args:
        recorder: which saw the tensors.
        snapshot: the allocator's history of the same run.
        device: such as `cuda:0`.
        run: what else was read; the peak of what was asked for, and where fragmentation comes from,
            are filled in here.
    """
    merged = merge(recorder.log, recorder.marks, recorder.spans, snapshot.trace)
    played = play(merged.log, snapshot.settings)
    peaks = find_peaks(played.log, requested=merged.log)
    asked = find_peaks(merged.log).allocated_peak_bytes
    run = replace(run, allocator=replace(run.allocator, requested_peak_bytes=asked))
    estimate = Estimate(
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
    return _with_fragmentation(estimate, snapshot, run)


def _live_inside(merged: Merged, level: int) -> int:
    """Bytes of what no tensor held, after so many events."""
    return sum(
        size if came else -size
        for storage, came, size in merged.log.requests(0, level)
        if storage in merged.inside
    )


def _with_fragmentation(estimate: Estimate, snapshot: DeviceSnapshot, run: DeviceRun) -> Estimate:
    try:
        peak = replay_to_peak(snapshot)
    except MeasureError as error:
        return replace(estimate, run=replace(run, fragmentation_reason=str(error)))
    if not peak.reserved_peak_bytes:  # memory ran out at the first request
        return replace(estimate, reserved_peak_bytes=0)
    return replace(
        estimate,
        reserved_peak_bytes=peak.reserved_peak_bytes,
        fragmentation=peak.fragmentation,
        run=replace(run, fragmentation_source=SOURCE),
    )
