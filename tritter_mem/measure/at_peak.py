"""How a device's memory was fragmented at the reserved peak, from its allocator's own history.

PyTorch's statistics keep peaks, not the state at a peak. The history of a run has every request and
every segment, so it is replayed up to that moment, and held against itself: every segment and every
block must come out where the device had it.
"""

from __future__ import annotations

from dataclasses import replace

from tritter_mem.allocator.fidelity import verify
from tritter_mem.allocator.history import DO_ALLOC, DO_RETRY, History, make_history
from tritter_mem.allocator.outcome import Scenario
from tritter_mem.allocator.scenarios import plans_for, run_scenario
from tritter_mem.allocator.snapshot_in import DeviceSnapshot
from tritter_mem.errors import MeasureError


def replay_to_peak(snapshot: DeviceSnapshot) -> Scenario:
    """Replay a device's history under the settings that it was recorded with.

    Where memory ran out, up to there.

    Raises:
        MeasureError: the replay is not what was recorded; says how far off.
    """
    history = _up_to_failure(make_history(snapshot))
    _, fidelity = verify(history, _untold)
    if not fidelity.exact:
        raise MeasureError(
            "the allocator's history does not replay as recorded: "
            f"{fidelity.segments_missed + fidelity.segments_extra:,} segments differ, and "
            f"{fidelity.addresses_total - fidelity.addresses_matched:,} of "
            f"{fidelity.addresses_total:,} blocks lie elsewhere"
        )
    recorded, *_ = plans_for(history, ())
    return run_scenario(history, recorded, None, _untold)


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


def _untold(steps: int) -> None:
    """Nobody waits for the progress."""
