"""What a replay finds: finished data, as reporters read it and `--json` prints it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from tritter_mem.results.allocations import Allocations, Frame
from tritter_mem.results.run import Fragmentation, Timeline
from tritter_mem.results.segments import SegmentState

SCHEMA = "tritter-mem.replay/1"
TIMELINE_COLUMNS = ("event", "allocated_bytes", "reserved_bytes")
NO_TIMELINE = Timeline(columns=TIMELINE_COLUMNS, rows=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What the recording says of itself; memory in bytes."""

    reserved_start_bytes: int
    reserved_peak_bytes: int
    reserved_end_bytes: int
    allocations: int
    segment_allocations: int
    segment_releases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """A replay with the recorded settings, compared with the recording.

    Attributes:
        segments_matched: segments that both took, with the same address and bytes.
        segments_missed: segments that only the recording took.
        segments_extra: segments that only the replay took.
        addresses_matched: requests that got the recorded address.
        addresses_total: requests.
    """

    segments_matched: int
    segments_missed: int
    segments_extra: int
    addresses_matched: int
    addresses_total: int

    @property
    def exact(self) -> bool:
        """Whether every segment and every address is as recorded."""
        return (
            self.segments_missed == self.segments_extra == 0
            and self.addresses_matched == self.addresses_total
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioOutOfMemory:
    """The request that a scenario could not serve; its replay ends there.

    Attributes:
        event: number of the recorded event, from 0; None: the state at the beginning is too large.
        requested_bytes: the bytes asked for.
        segment_bytes: the bytes that the driver would have had to give.
        allocated_bytes: live blocks at that moment.
        reserved_bytes: segments at that moment, the cache released.
        path: the call stack of the request, outermost first, where it is recorded.
    """

    event: int | None
    stream: int
    requested_bytes: int
    segment_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    path: tuple[Frame, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The recorded requests under other settings.

    Attributes:
        name: what to call it.
        conf: the whole of `PYTORCH_CUDA_ALLOC_CONF`.
        fresh: whether it starts with an empty cache, the live blocks allocated anew by address,
            instead of the recorded segments.
        out_of_memory: None where every request was served; else peaks count up to there.
        allocations_at_peak: requests served up to the fullest moment at the reserved peak.
        segments_at_peak: the segments at that moment; empty unless asked for.
    """

    name: str
    conf: str
    fresh: bool
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    fragmentation: Fragmentation
    alloc_retries: int
    out_of_memory: ScenarioOutOfMemory | None
    without_effect: tuple[str, ...]
    timeline: Timeline
    allocations_at_peak: int
    segments_at_peak: tuple[SegmentState, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every request was served."""
        return self.out_of_memory is None

    def to_dict(self) -> dict[str, Any]:
        """Without what only a picture needs."""
        record = asdict(replace(self, timeline=NO_TIMELINE, segments_at_peak=()))
        for name in ("timeline", "allocations_at_peak", "segments_at_peak"):
            del record[name]
        return record | {"fits": self.fits}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Which setting to use, and why; `conf` is None where none helps or none is needed."""

    text: str
    conf: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReplay:
    """One device of a snapshot.

    Attributes:
        capacity_bytes: what segments may take; None: no limit.
        capacity_source: `given`, `recorded` (from an out-of-memory event) or None.
        held_at_peak: who asked for the blocks that were live at the allocated peak of the recorded
            settings; None where no call stacks are recorded.
        held_by_module: the same blocks by module and what they are of it; None where the history
            does not say, as only a rehearsal's does.
    """

    device: int
    recorded: Recorded
    replayed: Recorded
    fidelity: Fidelity
    recorded_conf: str
    recorded_events: int
    capacity_bytes: int | None
    capacity_source: str | None
    scenarios: tuple[Scenario, ...]
    advice: Advice
    warnings: tuple[str, ...]
    held_at_peak: Allocations | None = None
    held_by_module: Allocations | None = None

    @property
    def fits(self) -> bool:
        """Whether the recorded settings serve every request; they come first."""
        return self.scenarios[0].fits

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        record = asdict(replace(self, scenarios=()))
        return record | {"scenarios": [scenario.to_dict() for scenario in self.scenarios]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A whole snapshot."""

    snapshot: str
    tool_version: str
    created: str
    devices: tuple[DeviceReplay, ...]

    @property
    def fits(self) -> bool:
        """Whether the recorded settings serve every request on every device."""
        return all(device.fits for device in self.devices)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "tool_version": self.tool_version,
            "snapshot": self.snapshot,
            "devices": [device.to_dict() for device in self.devices],
        }
