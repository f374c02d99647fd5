"""The record that every command produces and every reporter reads (`tritter-mem.result/1`).

All memory is integer bytes. A record is finished data: nothing here measures, plans or renders.
Where a kind of number is missing, `<kind>_reason` says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

SCHEMA = "tritter-mem.result/1"
Kind = Literal["planned", "simulated", "measured"]
KINDS: tuple[Kind, ...] = ("planned", "simulated", "measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Where the bytes are; the parts sum to the allocated peak that they belong to."""

    weights_bytes: int = 0
    embeddings_bytes: int = 0
    vision_bytes: int = 0
    kv_cache_bytes: int = 0
    activations_bytes: int = 0
    logits_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_state_bytes: int = 0
    workspace_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The sum of all parts."""
        return sum(self.items().values())

    def items(self) -> dict[str, int]:
        """Component name without `_bytes`, to bytes, in reading order."""
        return {f.name.removesuffix("_bytes"): getattr(self, f.name) for f in fields(self)}


COMPONENTS: tuple[str, ...] = tuple(f.name.removesuffix("_bytes") for f in fields(Components))


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One stretch of a run: load, prefill, decode, or forward, backward, optimizer."""

    name: str
    allocated_peak_bytes: int
    reserved_peak_bytes: int | None = None
    seconds: float | None = None
    components: Components | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragmentation:
    """What the allocator holds and cannot use, at the reserved peak."""

    reserved_not_allocated_bytes: int
    ratio: float
    largest_free_block_bytes: int
    inactive_split_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Memory over time: `rows` hold one number for each of `columns`. Thinned, peaks kept."""

    columns: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One kind of answer: what is planned, simulated or measured.

    Attributes:
        device: `cuda:0`, `cpu`; for planned and simulated the card it stands for.
        components: where the bytes are at the allocated peak.
        allocated_peak_bytes: the largest sum of live tensors.
        reserved_peak_bytes: what PyTorch's allocator took from the driver, where it is known.
        context_bytes: the CUDA context and loaded modules, outside PyTorch's allocator.
        device_peak_bytes: what `nvidia-smi` would show for the process.
        resident_peak_bytes: for a run on the CPU, the process's peak resident memory.
    """

    device: str
    components: Components
    phases: tuple[Phase, ...]
    allocated_peak_bytes: int
    reserved_peak_bytes: int | None = None
    context_bytes: int | None = None
    device_peak_bytes: int | None = None
    resident_peak_bytes: int | None = None
    fragmentation: Fragmentation | None = None
    timeline: Timeline | None = None

    @property
    def footprint_bytes(self) -> int:
        """The most complete figure there is for what the card must hold."""
        if self.device_peak_bytes is not None:
            return self.device_peak_bytes
        return (self.reserved_peak_bytes or self.allocated_peak_bytes) + (self.context_bytes or 0)


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
    """Whether it fits, by the best basis there is: measured, then simulated, then planned."""

    fits: bool
    budget_bytes: int
    headroom_bytes: int
    basis: Kind
    suggestions: tuple[Suggestion, ...] = ()


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
class Result:
    """One profile's answers. `to_dict` gives what `--json` prints."""

    created: str
    tool_version: str
    environment: Environment
    profile: dict[str, Any]
    profile_hash: str
    planned: Estimate | None = None
    simulated: Estimate | None = None
    measured: Estimate | None = None
    planned_reason: str | None = None
    simulated_reason: str | None = None
    measured_reason: str | None = None
    verdict: Verdict | None = None
    differences: tuple[Difference, ...] = ()
    schema: str = field(default=SCHEMA)

    @property
    def name(self) -> str:
        """The profile's name."""
        return str(self.profile.get("name", "unnamed"))

    def estimates(self) -> dict[Kind, Estimate]:
        """The kinds of answer that are there, in order."""
        found = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: estimate for kind, estimate in found.items() if estimate is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, with `schema` first."""
        record = asdict(self)
        return {"schema": record.pop("schema"), **record}


def compare(estimates: dict[Kind, Estimate]) -> tuple[Difference, ...]:
    """Set every component and the allocated peak side by side; rows that are all zero are left out."""
    names = [*COMPONENTS, "allocated_peak"]
    rows = (
        _difference(name, {k: _bytes_of(e, name) for k, e in estimates.items()}) for name in names
    )
    return tuple(row for row in rows if row is not None)


def _bytes_of(estimate: Estimate, name: str) -> int:
    if name == "allocated_peak":
        return estimate.allocated_peak_bytes
    return estimate.components.items()[name]


def _difference(name: str, found: dict[Kind, int]) -> Difference | None:
    if not any(found.values()):
        return None
    planned, simulated, measured = (found.get(kind) for kind in KINDS)
    return Difference(
        name=name,
        planned_bytes=planned,
        simulated_bytes=simulated,
        measured_bytes=measured,
        planned_vs_simulated=_ratio(planned, simulated),
        simulated_vs_measured=_ratio(simulated, measured),
        planned_vs_measured=_ratio(planned, measured),
    )


def _ratio(first: int | None, second: int | None) -> float | None:
    if not first or second is None:
        return None
    return second / first - 1


def judge(estimates: dict[Kind, Estimate], budget_bytes: int,
          suggestions: Iterable[Suggestion] = ()) -> Verdict | None:  # fmt: skip
    """Hold the best kind of answer there is against the budget; None where there is no answer."""
    basis = next((kind for kind in reversed(KINDS) if kind in estimates), None)
    if basis is None:
        return None
    headroom = budget_bytes - estimates[basis].footprint_bytes
    return Verdict(
        fits=headroom >= 0,
        budget_bytes=budget_bytes,
        headroom_bytes=headroom,
        basis=basis,
        suggestions=tuple(suggestions),
    )
