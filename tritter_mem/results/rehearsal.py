"""What a rehearsal comes to (`tritter-mem.rehearsal/1`): a command over stand-ins for CUDA.

All memory is integer bytes. Peaks are those of PyTorch's own allocator; no kernel computed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tritter_mem.errors import (
    EXIT_DOES_NOT_FIT,
    EXIT_INTERRUPTED,
    EXIT_NOT_MEASURED,
    EXIT_OK,
    EXIT_USAGE,
)
from tritter_mem.results.run import Verdict

SCHEMA = "tritter-mem.rehearsal/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankUse:
    """What one process took of one device.

    Attributes:
        rank: as torchrun or a like launcher numbers it; None where none did.
        process: its number.
        title: how the process calls itself.
        device: the number of the device, among all of the machine.
        allocated_peak_bytes: the largest sum of live tensors; None where PyTorch was not watched
            in the process.
        reserved_peak_bytes: what PyTorch's allocator took from the driver for them.
        active_peak_bytes: as allocated, with blocks that still waited for another stream.
        requested_peak_bytes: as allocated, before rounding.
        device_peak_bytes: all that the process took, with the context.
        allocated_end_bytes: live tensors at the end.
        reserved_end_bytes: what the allocator had then.
        retries: requests that were served only after cached memory went back to the driver.
        refusals: requests that were not served at all.
        snapshot: the file with the allocator's history, where it was asked for.
    """

    rank: int | None
    process: int
    title: str
    device: int
    allocated_peak_bytes: int | None
    reserved_peak_bytes: int | None
    active_peak_bytes: int | None
    requested_peak_bytes: int | None
    device_peak_bytes: int
    allocated_end_bytes: int | None
    reserved_end_bytes: int | None
    retries: int
    refusals: int
    snapshot: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A request that the device could not serve.

    Attributes:
        where: the line that asked.
        text: PyTorch's own words, where the error ended a process.
    """

    process: int
    device: int
    where: str
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    free_bytes: int
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What ran.

    Attributes:
        exit_code: its own; negative: the number of the signal that ended it.
        ended_by: why it was ended from outside: `--until`, `--host-limit`, or empty.
    """

    argv: tuple[str, ...]
    exit_code: int
    seconds: float
    ended_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFigures:
    """What a serving engine printed of itself; None where it did not.

    Attributes:
        weights_bytes: what loading the model took.
        activation_peak_bytes: the largest batch's, beyond the weights.
        graphs_bytes: what capturing CUDA graphs took.
        kv_cache_bytes: what was left for the KV cache.
        kv_cache_tokens: how many tokens that holds.
        context_tokens: the longest request.
        max_concurrency: how many such requests the cache holds.
    """

    name: str
    weights_bytes: int | None = None
    activation_peak_bytes: int | None = None
    graphs_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_tokens: int | None = None
    context_tokens: int | None = None
    max_concurrency: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Why the figures can be trusted, or cannot.

    Attributes:
        stubs_called: functions of CUDA's libraries that the stand-ins do not have; each failed.
        values_decided_shapes: lines at which a value that nothing computed decided a shape or a
            branch.
        assumed: lines at which a value decided that follows a stated rule.
        not_followed: lines at which such a value left PyTorch, as for an array of NumPy or
            `float(loss)`: what it decides from there on is not seen. That is said, and the run
            counts, since nearly every script shows its loss.
        uncounted: what takes memory on a card and is not counted here.
        problems: why else the run cannot be trusted.
    """

    stubs_called: tuple[str, ...] = ()
    values_decided_shapes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    not_followed: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def trusted(self) -> bool:
        """Whether nothing speaks against the figures."""
        return not self.values_decided_shapes and not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A finished rehearsal.

    Attributes:
        gpu: the card's name in the table.
        title: the card's name as the driver has it.
        devices: how many of them there were.
        total_bytes: the memory of each, as CUDA shows it, or the cap.
        context_bytes: what the CUDA context of a process is taken to be.
        context_source: where that is from.
        rehearsed: what the fullest process took; None where none used a device.
        ranks: each process and device that was used, by rank.
        engine: what a serving engine that was started printed of itself.
        versions: what ran, by name.
        accepted: whether a run that cannot be trusted counts all the same.
    """

    created: str
    tool_version: str
    gpu: str
    title: str
    devices: int
    total_bytes: int
    context_bytes: int
    context_source: str
    command: Command
    trust: Trust
    rehearsed: RankUse | None = None
    ranks: tuple[RankUse, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    verdict: Verdict | None = None
    engine: EngineFigures | None = None
    versions: dict[str, str] = field(default_factory=dict)
    allocator_conf: str = ""
    accepted: bool = False
    interrupted: bool = False
    schema: str = field(default=SCHEMA)

    @property
    def failed(self) -> bool:
        """Whether the command ended with an error that nobody asked for."""
        return self.over_host_limit or (self.command.exit_code != 0 and not self.command.ended_by)

    @property
    def over_host_limit(self) -> bool:
        """Whether it was ended for what it held of the host's memory."""
        return self.command.ended_by == "--host-limit"

    @property
    def out_of_memory(self) -> bool:
        """Whether it failed for want of memory."""
        return self.failed and bool(self.refusals) and not self.over_host_limit

    @property
    def exit_code(self) -> int:
        """1 out of memory; 2 it failed; 3 untrusted, or no device was used; 130 interrupted."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        if self.out_of_memory:
            return EXIT_DOES_NOT_FIT
        if self.failed:
            return EXIT_USAGE
        if self.rehearsed is None or not (self.trust.trusted or self.accepted):
            return EXIT_NOT_MEASURED
        return EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints, with `schema` first."""
        record = asdict(self)
        record["trust"]["trusted"] = self.trust.trusted
        return {"schema": record.pop("schema"), **record}


def fullest(ranks: tuple[RankUse, ...]) -> RankUse | None:
    """The process that took most of a device; of several the first."""
    return max(ranks, key=lambda use: use.device_peak_bytes, default=None)
