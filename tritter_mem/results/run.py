"""The record that every command produces and every reporter reads (`tritter-mem.result/1`).

All memory is integer bytes. A record is finished data: nothing here measures, plans or renders.
Where a kind of number is missing, `<kind>_reason` says why.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol

from tritter_mem.results.allocations import Allocation, Allocations, Frame, joined

SCHEMA = "tritter-mem.result/1"
Kind = Literal["planned", "simulated", "rehearsed", "measured"]
KINDS: tuple[Kind, ...] = ("planned", "simulated", "rehearsed", "measured")
"""From the one that knows least to the best.

A rehearsed run ran over stand-ins for CUDA's libraries, without a device that computes.
"""
RUN_KINDS: tuple[Kind, ...] = ("rehearsed", "measured")
"""Those of a run of PyTorch's own allocator, or on the CPU."""
KindPair = tuple[Kind, Kind]
"""Two kinds of answer, in the order of KINDS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Where the bytes are; the parts sum to the allocated peak that they belong to.

    Attributes:
        rounding_bytes: what the allocator's blocks have beyond what was asked for. Which block a
            request gets depends on all before it, so a plan has it only where all of a run was
            played.
    """

    weights_bytes: int = 0
    embeddings_bytes: int = 0
    vision_bytes: int = 0
    kv_cache_bytes: int = 0
    activations_bytes: int = 0
    logits_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_state_bytes: int = 0
    workspace_bytes: int = 0
    rounding_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The sum of all parts."""
        return sum(self.items().values())

    def items(self) -> dict[str, int]:
        """Component name without `_bytes`, to bytes, in reading order."""
        return {f.name.removesuffix("_bytes"): getattr(self, f.name) for f in fields(self)}


COMPONENTS: tuple[str, ...] = tuple(f.name.removesuffix("_bytes") for f in fields(Components))


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorStats:
    """What PyTorch's allocator counted in a phase of a run on a GPU, or in all of it.

    Attributes:
        requested_peak_bytes: the largest sum of what was asked for, before rounding.
        active_peak_bytes: the largest sum of blocks that were allocated, or freed and still waited
            for another stream.
        inactive_split_peak_bytes: the largest sum of free parts of segments in use.
        retries: requests that were served only after cached memory went back to the driver.
        segment_allocations: calls that took memory from the driver.
        segment_releases: calls that gave it back.
    """

    requested_peak_bytes: int
    active_peak_bytes: int
    inactive_split_peak_bytes: int
    retries: int
    segment_allocations: int
    segment_releases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase of a run: load, prefill, decode, or forward, backward, optimizer.

    Attributes:
        tokens_per_second: tokens of all sequences that went through it, by its seconds.
        allocator: for a run on a GPU, what else the allocator counted.
    """

    name: str
    allocated_peak_bytes: int
    reserved_peak_bytes: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    components: Components | None = None
    allocator: AllocatorStats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragmentation:
    """What the allocator holds and cannot use, at the reserved peak.

    Of several moments with the reserved peak it is the one with most allocated. Measured figures
    are those of the recorded run, see `DeviceRun.fragmentation_source`: PyTorch's statistics keep
    peaks, not the state at a peak.
    """

    reserved_not_allocated_bytes: int
    ratio: float
    largest_free_block_bytes: int
    inactive_split_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """The request that could not be served, and what made it."""

    operator: str
    module: str
    phase: str
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    limit_bytes: int


OUTSIDE_PHASES, IN_WARM_UP = -1, -2


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Memory over time: `rows` hold one number for each of `columns`. Thinned, peaks kept.

    The first column is the axis. A column `phase` has the number of the phase in the answer's
    phases, from zero, `OUTSIDE_PHASES` or `IN_WARM_UP`.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one module holds of one component at the allocated peak.

    Attributes:
        module: whose forward or backward pass allocated it, as `Transformer.layers.3.mlp`;
            empty for what was allocated outside of any.
        component: one of `COMPONENTS`.
        allocated_bytes: of the allocator's blocks.
    """

    module: str
    component: str
    allocated_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBySame:
    """What modules that differ in their numbers alone hold of one component together.

    Attributes:
        module: their path, as `Transformer.layers.*.mlp`.
        component: one of `COMPONENTS`.
        count: how many modules they are.
        allocated_bytes: of all of them.
    """

    module: str
    component: str
    count: int
    allocated_bytes: int


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def held_by_same(holdings: Iterable[Holding]) -> list[HeldBySame]:
    """Join the holdings of modules that differ in their numbers alone, most first."""
    joined: defaultdict[tuple[str, str], list[Holding]] = defaultdict(list)
    for holding in holdings:
        joined[_NUMBER.sub("*", holding.module), holding.component].append(holding)
    found = [
        HeldBySame(
            module=module,
            component=component,
            count=len({holding.module for holding in same}),
            allocated_bytes=sum(holding.allocated_bytes for holding in same),
        )
        for (module, component), same in joined.items()
    ]
    return sorted(found, key=lambda one: (-one.allocated_bytes, one.module, one.component))


def by_module(holdings: Sequence[Holding]) -> Allocations:
    """What modules hold, those that differ in their numbers alone together.

    `Transformer.layers.3.mlp` is in `Transformer`, `layers.*`, `mlp`.
    """
    return Allocations(
        by="module",
        allocations=joined(
            Allocation(
                path=_module_path(one.module),
                allocated_bytes=one.allocated_bytes,
                count=one.count,
                component=one.component,
            )
            for one in held_by_same(holdings)
        ),
    )


def _module_path(module: str) -> tuple[Frame, ...]:
    path: list[str] = []
    for name in module.split(".") if module else ():
        if name == "*" and path:
            path[-1] += ".*"
        else:
            path.append(name)
    return tuple(Frame(name=name) for name in path)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentBlock:
    """A block of a segment: `component` is empty where it is free."""

    size_bytes: int
    component: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What the allocator took from the driver in one piece, and its blocks in address order."""

    size_bytes: int
    blocks: tuple[SegmentBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRun:
    """What only a run on a GPU tells.

    Attributes:
        allocator: what the allocator counted over the whole run, the warm-up's peaks left out.
        allocator_limit_bytes: the cap on what PyTorch might reserve; None: the device's memory.
        total_bytes: the device's memory, as CUDA says.
        other_processes_bytes: what others had on the device before the run; it counts nowhere.
        context_created_bytes: the CUDA context when it was created, before the first kernel.
        context_first_kernel_bytes: the same after the first kernel. What it takes at the end, with
            all kernels loaded, is `MemoryUse.context_bytes`.
        process_bytes: what the driver (NVML) counts for the process at the end.
        device_used_bytes: what the driver counts for all processes at the end.
        unread: why figures above are missing.
        components_reason: why there are no components.
        fragmentation_source: which run the fragmentation comes from, and how.
        fragmentation_reason: why it has none.
    """

    allocator: AllocatorStats
    total_bytes: int
    allocator_limit_bytes: int | None = None
    other_processes_bytes: int | None = None
    context_created_bytes: int | None = None
    context_first_kernel_bytes: int | None = None
    process_bytes: int | None = None
    device_used_bytes: int | None = None
    unread: tuple[str, ...] = ()
    components_reason: str | None = None
    fragmentation_source: str | None = None
    fragmentation_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """The figures of a run that are compared with those of its repetitions.

    Attributes:
        seconds: of all phases but `load`.
    """

    allocated_peak_bytes: int
    reserved_peak_bytes: int | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Runs of one case, each in a separate process; minimum, median and maximum by figure."""

    runs: int
    minimum: RunFigures
    median: RunFigures
    maximum: RunFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """One kind of answer: what is planned, simulated, rehearsed or measured.

    Attributes:
        device: `cuda:0`, `cpu`; for planned and simulated the card it stands for.
        components: where the bytes are at the allocated peak; all zero where it is not known.
        allocated_peak_bytes: the largest sum of live tensors.
        peak_at: what was running then, in words.
        library_workspace_bytes: the part of `workspace_bytes` that libraries (cuBLAS) take on a
            GPU; a run on the CPU has none.
        out_of_memory: the request that the card cannot serve, where there is one. Planned and
            simulated figures are then those of a card that could, measured ones those up to there.
        reserved_peak_bytes: what PyTorch's allocator took from the driver, where it is known.
        context_bytes: the CUDA context and loaded modules, outside PyTorch's allocator.
        device_peak_bytes: what `nvidia-smi` would show for the process.
        resident_peak_bytes: for a run on the CPU, the process's peak resident memory.
        held_at_peak: what was alive at the allocated peak, by module, most first.
        segments: what the allocator had from the driver at the allocated peak.
        cache_releases: how often the allocator gave cached memory back to the driver to stay within
            the budget; each time the host waits for the device. The reserved peak is what it then
            was: on a larger card more would be cached.
        lower_bound_reason: what of the run is not counted, so that it takes more than this.
        caveat: what a reader must know of figures for this card or this run, where there is
            something.
        shortened: whether chunks and tokens that take the memory of those before them were left out
            (`--fast`).
        tokens_per_second: generated by decode, or trained on by a whole step.
        run: for a run on a GPU, what only that tells.
        spread: of repeated runs; the other figures are those of the median one.
    """

    device: str
    components: Components
    phases: tuple[Phase, ...]
    allocated_peak_bytes: int
    peak_at: str | None = None
    library_workspace_bytes: int = 0
    reserved_peak_bytes: int | None = None
    context_bytes: int | None = None
    device_peak_bytes: int | None = None
    resident_peak_bytes: int | None = None
    tokens_per_second: float | None = None
    fragmentation: Fragmentation | None = None
    timeline: Timeline | None = None
    out_of_memory: OutOfMemory | None = None
    held_at_peak: tuple[Holding, ...] = ()
    segments: tuple[Segment, ...] = ()
    shortened: bool = False
    cache_releases: int = 0
    lower_bound_reason: str | None = None
    caveat: str | None = None
    run: DeviceRun | None = None
    spread: Spread | None = None

    @property
    def components_known(self) -> bool:
        """Whether the components say where the bytes are."""
        return self.components.total_bytes > 0 or self.allocated_peak_bytes == 0

    @property
    def footprint_bytes(self) -> int:
        """The most complete figure there is for what the card must hold."""
        if self.device_peak_bytes is not None:
            return self.device_peak_bytes
        return (self.reserved_peak_bytes or self.allocated_peak_bytes) + (self.context_bytes or 0)

    def totals(self) -> dict[str, int | None]:
        """Total without `_bytes`, to bytes where they are known, in reading order.

        The device's peak counts as known where more than what tensors take is.
        """
        more = (self.reserved_peak_bytes, self.context_bytes) != (None, None)
        known = more or self.device_peak_bytes is not None
        return {
            "allocated_peak": self.allocated_peak_bytes,
            "reserved_peak": self.reserved_peak_bytes,
            "context": self.context_bytes,
            "device_peak": self.footprint_bytes if known else None,
            "resident_peak": self.resident_peak_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A change that was itself planned: the settings, what they save, whether it then fits."""

    text: str
    settings: dict[str, Any]
    saves_bytes: int
    fits: bool
    headroom_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether it fits, by the best basis there is, the last of `KINDS`.

    Attributes:
        cards: where it does not fit, the smallest cards that would hold it as it is, by their own
            plans.
    """

    fits: bool
    budget_bytes: int
    headroom_bytes: int
    basis: Kind
    suggestions: tuple[Suggestion, ...] = ()
    cards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One component or total beside itself; the ratios are (second / first) - 1."""

    name: str
    planned_bytes: int | None
    simulated_bytes: int | None
    measured_bytes: int | None
    planned_vs_simulated: float | None
    simulated_vs_measured: float | None
    planned_vs_measured: float | None
    rehearsed_bytes: int | None = None
    planned_vs_rehearsed: float | None = None
    simulated_vs_rehearsed: float | None = None
    rehearsed_vs_measured: float | None = None

    def sizes(self) -> dict[Kind, int | None]:
        """Bytes by kind of answer."""
        return {kind: getattr(self, f"{kind}_bytes") for kind in KINDS}

    def ratio(self, pair: KindPair) -> float | None:
        """How far the second kind of a pair is from the first; None where it is not known.

        To nothing there is no ratio, whatever a file says.
        """
        found: float | None = getattr(self, f"{pair[0]}_vs_{pair[1]}")
        return found if self.sizes()[pair[0]] else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCase:
    """A training step under one checkpointing policy, simulated and, where asked for, measured.

    Attributes:
        policy: as in `training.checkpointing.policy`.
        n: its number, where it takes one.
        allocated_peak_bytes: the largest sum of live tensors.
        reserved_peak_bytes: what PyTorch's allocator then took from the driver.
        activations_peak_bytes: what activations take of a phase's allocated peak, at most.
        flops: of one step, forward and backward, recomputation included.
        recomputed_flops: the part that the policy `none` does not have.
        on_front: no other case takes less memory or work without taking more of the other.
        measured_allocated_peak_bytes: the same peak, measured in a separate process.
        measured_reserved_peak_bytes: on a GPU, what the allocator then took from the driver.
        measured_seconds: of one step: forward, backward, optimizer.
        measured_reason: why it was not measured, or not to the end.
    """

    policy: str
    n: int
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    activations_peak_bytes: int
    flops: int
    recomputed_flops: int = 0
    on_front: bool = False
    measured_allocated_peak_bytes: int | None = None
    measured_reserved_peak_bytes: int | None = None
    measured_seconds: float | None = None
    measured_reason: str | None = None

    @property
    def name(self) -> str:
        """The policy as `--checkpoint` takes it: `every-nth:4`."""
        return f"{self.policy}:{self.n}" if self.n > 1 else self.policy

    @property
    def overhead(self) -> float:
        """Recomputed work by the work without recomputation."""
        base = self.flops - self.recomputed_flops
        return self.recomputed_flops / base if base else 0.0


LONGEST_CONTEXT = 1 << 20
"""Where curves over the context end, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextCurve:
    """What one kind of cache needs at each context length.

    Attributes:
        cache_dtype: as in `kv_cache.dtype`.
        kv_heads: as in `model.num_key_value_heads`; 0 for a named model, whose layers may differ.
        own: whether this is the profile's own cache.
        points: (context in tokens, bytes of live tensors and the CUDA context), ascending.
        largest_context: the longest context that fits the budget; None where none does.
    """

    cache_dtype: str
    kv_heads: int
    own: bool
    points: tuple[tuple[int, int], ...]
    largest_context: int | None


LadderEnd = Literal["fits", "out of memory", "does not fit", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderStep:
    """One rung of the out-of-memory ladder, and how it ended.

    Attributes:
        rung: what is given up beside the rungs before it, in words.
        settings: all that is given up so far, by name.
        ended: `fits`; `out of memory`: tried; `does not fit`: predicted so, and not tried;
            `refused`: it changes what is learned, and nobody asked for that.
        needs_bytes: what the device must hold, where it is predicted or measured.
        allocated_bytes: live tensors when memory ran out, or at the peak.
        reserved_bytes: what PyTorch's allocator then had from the driver.
        detail: what the error said.
        changes_result: whether the result is another one than without the rung.
    """

    rung: str
    settings: dict[str, Any]
    ended: LadderEnd
    needs_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    detail: str = ""
    changes_result: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The rungs that were gone through for one job, in order; the last one is where it ended.

    Attributes:
        kind: how the rungs were judged.
        budget_bytes: what may be used.
    """

    kind: Kind
    budget_bytes: int
    steps: tuple[LadderStep, ...]

    @property
    def ended_on(self) -> LadderStep | None:
        """The rung that fits; None where none does."""
        return next((step for step in self.steps if step.ended == "fits"), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the numbers were made with. Planning needs none of it, so all may be missing."""

    python: str
    torch: str | None = None
    triton: str | None = None
    cuda: str | None = None
    driver: str | None = None
    gpu: str | None = None
    total_bytes: int | None = None
    allocator_conf: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model is, whatever runs of it.

    Attributes:
        name: as it was named.
        architecture: `model_type` of its configuration; `tritter` for the bundled model.
        parameters: all that a checkpoint holds.
        language_parameters: of the language model as transformers builds it: without towers,
            without layers for multi-token prediction.
        active_parameters: of these, what one token passes through.
        weight_bytes: of the language model, as it is stored.
        kv_bytes_per_token: what a token behind the context adds, in the cache's type: nothing in
            layers whose window is full.
        stored_bytes: of all tensors, as the headers of its files have them, where there are files.
        unsupported: what of its configuration is not counted, in one sentence each.
        runtime: what runs it, of a named model: `transformers` or `llama.cpp`.
        dequantises: whether that holds quantised weights as plain numbers on the card.
    """

    name: str
    architecture: str
    parameters: int
    language_parameters: int
    active_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    stored_bytes: int | None = None
    unsupported: tuple[str, ...] = ()
    runtime: str = "transformers"
    dequantises: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One profile's answers. `to_dict` gives what `--json` prints.

    Attributes:
        model: what the model is; None for third-party code, and in records of older versions.
        checkpointing: the trade-off of every policy, where it was asked for.
        ladders: what the out-of-memory ladder comes to, simulated and measured, where it was asked
            for.
        context_curves: what other context lengths and kinds of cache would need, as planned, where
            the record was made to be drawn; empty in training, which has no cache.
    """

    created: str
    tool_version: str
    environment: Environment
    profile: dict[str, Any]
    profile_hash: str
    model: ModelFacts | None = None
    planned: MemoryUse | None = None
    simulated: MemoryUse | None = None
    rehearsed: MemoryUse | None = None
    measured: MemoryUse | None = None
    planned_reason: str | None = None
    simulated_reason: str | None = None
    rehearsed_reason: str | None = None
    measured_reason: str | None = None
    verdict: Verdict | None = None
    differences: tuple[Difference, ...] = ()
    checkpointing: tuple[CheckpointCase, ...] = ()
    ladders: tuple[Ladder, ...] = ()
    context_curves: tuple[ContextCurve, ...] = ()
    schema: str = field(default=SCHEMA)

    @property
    def name(self) -> str:
        """The profile's name."""
        return str(self.profile.get("name", "unnamed"))

    def by_kind(self) -> dict[Kind, MemoryUse]:
        """The kinds of answer that are there, in order."""
        found = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: use for kind, use in found.items() if use is not None}

    def gpu_of(self, kind: Kind) -> str:
        """The card that a kind of answer is for: a name of the table, the driver's, or `cpu`."""
        device = self.by_kind()[kind].device
        ran_on_gpu = kind in RUN_KINDS and device != "cpu"
        return self.environment.gpu or device if ran_on_gpu else device

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, with `schema` first."""
        record = asdict(self)
        return {"schema": record.pop("schema"), **record}


class Record(Protocol):
    """What commands print, one for each profile."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with `schema` first."""
        ...


def document(records: Sequence[Record]) -> Any:
    """What `--json` prints: one record, or a list of them where several profiles were asked for."""
    found = [record.to_dict() for record in records]
    return found[0] if len(found) == 1 else found
