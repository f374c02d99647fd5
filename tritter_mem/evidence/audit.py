"""The memory specification's claims, each compared with what follows from the formulas.

The claims are those of the specification that this project started from: a 7B BitNet model with
128K tokens on a 16 GB card. Its gigabytes are decimal. Claims about code and hardware have no
number; they carry their verdict and its reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, cast

from tritter_mem.config.loading import load_profile, profile_hash
from tritter_mem.config.profile import Profile, changed
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.bundled import architecture_of
from tritter_mem.planner.case import Case
from tritter_mem.planner.compose import plan
from tritter_mem.planner.weights import embeddings_bytes, vision_bytes, weights_bytes
from tritter_mem.profiling.checkpointing import simulate_policy
from tritter_mem.results.run import COMPONENTS, Components, MemoryUse, Phase, Result
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.simulate import simulate
from tritter_mem.units import GB

SCHEMA = "tritter-mem.audit/1"
RIGHT, CLOSE = 1.10, 1.25
"""Within a tenth a claim is right, within a quarter close."""

Unit = Literal["bytes", "percent", "capability"]


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One claim.

    Attributes:
        section: where the specification makes it.
        claim: what it is about.
        unit: of the figures.
        claimed: the specification's figure; None for a claim without one.
        computed: what follows from the formulas.
        simulated: what simulation of the real model gives, where it was asked for.
        measured: what a GPU measured, where such a run was given.
        verdict: in words.
        why: what makes the difference.
    """

    section: str
    claim: str
    unit: Unit
    claimed: float | None
    computed: float | None
    verdict: str
    why: str
    simulated: float | None = None
    measured: float | None = None


def audit(
    simulated: Answers | None = None, measured: Answers | None = None
) -> tuple[AuditRow, ...]:
    """Every claim, in the specification's order.

    Args:
        simulated: answers for the simulated column, which is empty without.
        measured: the same for the measured column; figures that are NaN are left out.
    """
    rows = tuple(_rows(Planned()))
    if simulated is not None:
        rows = tuple(_with_column(rows, "simulated", simulated))
    return rows if measured is None else tuple(_with_column(rows, "measured", measured))


def _with_column(
    rows: tuple[AuditRow, ...], column: Literal["simulated", "measured"], answers: Answers
) -> Iterator[AuditRow]:
    """The rows with another kind's figures beside what is computed."""
    for row, other in zip(rows, _rows(answers), strict=True):
        found = other.computed
        known = row.unit in ("bytes", "percent") and found is not None and not math.isnan(found)
        yield replace(row, **{column: found}) if known else row  # type: ignore[arg-type]


def _rows(answers: Answers) -> Iterator[AuditRow]:
    """Every claim, with what is computed taken from one kind of answer."""
    yield from _weights(answers)
    yield from _training_state(answers)
    yield from _cache(answers)
    yield from _windows(answers)
    yield from _activations(answers)
    yield from _checkpointing(answers)
    yield from _budget(answers)
    yield from _configurations(answers)
    yield from _code_and_hardware()


def to_dict(rows: tuple[AuditRow, ...]) -> dict[str, Any]:
    """What `--json` prints."""
    return {"schema": SCHEMA, "rows": [asdict(row) for row in rows]}


class Answers(Protocol):
    """What the audit asks of a kind of answer."""

    def use(self, profile: Profile) -> MemoryUse:
        """All of a profile's memory."""

    def policy(self, profile: Profile, policy: str, n: int) -> tuple[int, float]:
        """Under a checkpointing policy: the peak of activations in bytes, and recomputed work.

        The work is a part of that of a step without recomputation.
        """


class Planned:
    """By formula. Recomputed work leaves out attention and the loss."""

    def use(self, profile: Profile) -> MemoryUse:
        """All of a profile's memory."""
        return plan(profile, find_gpu(profile.gpu.name))

    def policy(self, profile: Profile, policy: str, n: int) -> tuple[int, float]:
        """The forward pass's products again but the last of a layer, in one layer of n.

        A step comes to three times the forward pass's products.
        """
        checkpointing = {"policy": policy, "n": n}
        phases = self.use(changed(profile, {"training.checkpointing": checkpointing})).phases
        peak = max(p.components.activations_bytes for p in phases if p.components is not None)
        model = architecture_of(profile.model)
        weights = {n: math.prod(s) for n, s in model.layers[0].linears(model.hidden).items()}
        again = 1 - weights["down"] / sum(weights.values())
        return peak, 0.0 if policy == "none" else again / 3 / n


class Simulated:
    """By simulation, each profile once. Recomputed work has attention and the loss in it.

    Args:
        progress: shows how far each simulation is.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress or Progress()
        self._uses: dict[str, MemoryUse] = {}
        self._work: dict[str, int] = {}

    def use(self, profile: Profile) -> MemoryUse:
        """All of a profile's memory."""
        key = profile_hash(profile)
        if key not in self._uses:
            self._progress.begin(profile.name)
            self._uses[key] = simulate(profile, progress=self._progress)
        return self._uses[key]

    def policy(self, profile: Profile, policy: str, n: int) -> tuple[int, float]:
        """The operators' own operations, against those under `none`, which is asked for first."""
        case = simulate_policy(profile, policy, n, self._progress)
        base = self._work.setdefault(profile_hash(profile), case.flops)
        return case.activations_peak_bytes, case.flops / base - 1


NAN = cast("int", math.nan)
_NOWHERE = Components(**{f"{name}_bytes": NAN for name in COMPONENTS})
UNKNOWN = MemoryUse(
    device="",
    components=_NOWHERE,
    phases=(Phase(name="optimizer", allocated_peak_bytes=NAN, components=_NOWHERE),),
    allocated_peak_bytes=NAN,
    library_workspace_bytes=NAN,
)
"""An answer of which nothing is known: its figures are NaN, and so is what follows from one."""


class Measured:
    """By runs on a GPU that went to their end; figures that no run tells are NaN.

    Args:
        results: records with what was measured; the card to fit and the name do not matter.
    """

    def __init__(self, results: Iterable[Result]) -> None:
        self._found = {
            _content(result.profile): _with_known_components(result.measured)
            for result in results
            if result.measured is not None
            and result.measured.device != "cpu"
            and result.measured.out_of_memory is None
        }

    def use(self, profile: Profile) -> MemoryUse:
        """All of a profile's memory."""
        return self._found.get(_content(profile.model_dump()), UNKNOWN)

    def policy(self, profile: Profile, policy: str, n: int) -> tuple[int, float]:
        """The peak; recomputed work is no figure of a run."""
        checkpointing = {"policy": policy, "n": n}
        found = self.use(changed(profile, {"training.checkpointing": checkpointing}))
        parts = [phase.components for phase in found.phases if phase.components is not None]
        return max((part.activations_bytes for part in parts), default=NAN), math.nan


def _with_known_components(use: MemoryUse) -> MemoryUse:
    if use.components_known:
        return use
    return replace(use, components=_NOWHERE, phases=UNKNOWN.phases, library_workspace_bytes=NAN)


def _content(profile: Mapping[str, Any]) -> str:
    """What a run's memory depends on, whatever it is called and whichever card it is to fit."""
    workload = profile.get("workload")
    trains = isinstance(workload, Mapping) and workload.get("mode") == "training"
    unused = {"name", "description", "gpu", "kv_cache" if trains else "training"}
    kept = {key: value for key, value in profile.items() if key not in unused}
    return json.dumps(kept, sort_keys=True)


def judged(claimed: float, computed: float) -> str:
    """How far a claim is off: right, close, or too low or high and by what factor."""
    ratio = computed / claimed if claimed else float("inf")
    factor = max(ratio, 1 / ratio) if ratio else float("inf")
    if factor <= RIGHT:
        return "right"
    if factor <= CLOSE:
        return "close"
    return f"{factor:.{0 if factor >= 10 else 1}f}x too {'low' if ratio > 1 else 'high'}"


def _row(section: str, claim: str, claimed_gb: float, computed_bytes: float, why: str) -> AuditRow:
    claimed = claimed_gb * GB
    return AuditRow(
        section=section, claim=claim, unit="bytes", claimed=claimed, computed=computed_bytes,
        verdict=judged(claimed, computed_bytes), why=why,
    )  # fmt: skip


def _7b(**settings: Any) -> Profile:
    """The 7B profile; a double underscore in a setting's name stands for the dot."""
    return load_profile("7b", {key.replace("__", "."): value for key, value in settings.items()})


def _short(**settings: Any) -> Profile:
    """The 7B profile with its prompt in one chunk: what it stores is the same, and sooner there."""
    return _7b(workload__prefill_chunk="128k", workload__new_tokens=1, **settings)


def _stored(parts: Components) -> int:
    return parts.weights_bytes + parts.embeddings_bytes


def _weights(answers: Answers) -> Iterator[AuditRow]:
    packed = _7b(weights__format="ternary-1.6bit")
    case = Case.of(packed, find_gpu(packed.gpu.name))
    small = weights_bytes(case) + embeddings_bytes(case)
    yield _row(
        "1.2, 2.1", "weights, inference", 1.4, _stored(answers.use(_7b()).components),
        "1.58 bits is the entropy: stored are 2 bits, and embeddings stay in bfloat16; "
        f"{small / GB:.2f} GB at 1.6 bits",
    )  # fmt: skip
    vision = _short(model__vision="siglip-base")
    wide = 2 * vision_bytes(Case.of(vision, find_gpu(vision.gpu.name)))
    yield _row(
        "1.2", "vision encoder", 0.4, answers.use(vision).components.vision_bytes,
        f"93 M parameters in bfloat16, and a projection; {wide / GB:.2f} GB in float32",
    )  # fmt: skip
    yield _row(
        "1.2", "all of it", 14, answers.use(_7b()).footprint_bytes,
        "the cache is twice what the specification says",
    )  # fmt: skip


def _training_state(answers: Answers) -> Iterator[AuditRow]:
    phases = answers.use(_7b(workload__mode="training")).phases
    parts = next(phase.components for phase in phases if phase.name == "optimizer")
    assert parts is not None  # noqa: S101  (every planned and simulated phase has them)
    shadow = _stored(parts)
    yield _row(
        "2.2", "shadow weights, float32", 14, shadow, "14 GB is float16: 7.01 B parameters * 4"
    )
    yield _row(
        "2.2", "training, weights in all", 15.4,
        shadow + parts.gradients_bytes + parts.optimizer_state_bytes,
        "gradients and AdamW's two moments are missing; activations come on top",
    )  # fmt: skip


def _kv_cache(answers: Answers, **settings: Any) -> int:
    return answers.use(_short(**settings)).components.kv_cache_bytes


def _cache(answers: Answers) -> Iterator[AuditRow]:
    claims = {"float16": 67, "fp8": 34, "int4": 8.4, "int2": 4.2}
    for dtype, claimed in claims.items():
        scales = dtype.startswith("int")
        why = "its own formula gives twice this; scales and minima add 6%" if dtype == "int4" else (
            "its own formula gives twice this; scales and minima add 13%" if scales
            else "as its formula says")  # fmt: skip
        found = _kv_cache(answers, kv_cache__dtype=dtype)
        yield _row("3.1", f"KV cache, 128K, {dtype}", claimed, found, why)


def _windows(answers: Answers) -> Iterator[AuditRow]:
    for window, claimed in ((4096, 0.5), (8192, 1.0)):
        found = _kv_cache(answers, model__sliding_window=window)
        why = "its formula, and scales, sinks and tail"
        yield _row("3.3", f"KV cache, {window // 1024}K window, int4", claimed, found, why)
    yield AuditRow(
        section="3.3", claim="effective 128K by a window", unit="bytes", claimed=None,
        computed=None, verdict="misleading",
        why="memory is bounded, but tokens outside the window are not attended to",
    )  # fmt: skip


def _activations(answers: Answers) -> Iterator[AuditRow]:
    chunked = answers.use(_7b())
    parts = chunked.components
    found = parts.activations_bytes + parts.logits_bytes + parts.workspace_bytes
    found -= chunked.library_workspace_bytes
    yield _row(
        "4.1", "forward activations", 34, found,
        "one hidden state a layer was counted; without gradients they are freed",
    )  # fmt: skip
    whole = plan(_7b(workload__prefill_chunk="128k"), find_gpu("rtx-5080")).components
    yield _row(
        "4.3", "peak activations", 2.1, found,
        "in chunks of 2,048 tokens, scratch included; unchunked, with the MLP that the claim "
        f"leaves out, {whole.activations_bytes / GB:.1f} GB",
    )  # fmt: skip


def _checkpointing(answers: Answers) -> Iterator[AuditRow]:
    """Peak of activations alone, and recomputed work against that of a whole step."""
    profile = _7b(workload__mode="training", workload__context="8k")
    base, _ = answers.policy(profile, "none", 1)
    claims = (("every-layer", 1, 90, 33), ("every-nth", 4, 75, 8), ("every-nth", 8, 60, 4))
    for policy, n, saved, work in claims:
        peak, recomputed = answers.policy(profile, policy, n)
        where = "all" if n == 1 else f"every {n}"
        why = "" if n == 1 else f"its code (i % {n} == 0) checkpoints one layer in {n}"
        yield _percent(f"checkpoint {where}, memory", saved, 100 * (1 - peak / base), why)
        yield _percent(f"checkpoint {where}, work", work, 100 * recomputed, "")


def _percent(claim: str, claimed: float, computed: float, why: str) -> AuditRow:
    return AuditRow(
        section="4.2", claim=claim, unit="percent", claimed=claimed, computed=computed,
        verdict=judged(claimed, computed), why=why,
    )  # fmt: skip


def _budget(answers: Answers) -> Iterator[AuditRow]:
    yield _row(
        "5.2, 8.1", "KV cache of its budget test", 10, _kv_cache(answers),
        "its own test asks for less than 10 GB, and its function gives 17.2",
    )  # fmt: skip


def _configurations(answers: Answers) -> Iterator[AuditRow]:
    claims = {
        "spec-maximum-context": ("6.1", 14), "spec-balanced": ("6.1", 12),
        "spec-throughput": ("6.1", 10), "spec-streaming": ("6.1", 4),
        "spec-train-full-context": ("6.2", 15), "spec-train-efficient": ("6.2", 14),
        "spec-train-development": ("6.2", 12),
    }  # fmt: skip
    for name, (section, claimed) in claims.items():
        profile = load_profile(name)
        found = answers.use(profile).footprint_bytes
        card = find_gpu(profile.gpu.name)
        fits = found <= (profile.gpu.budget or card.default_budget_bytes)
        where = f"{'fits' if fits else 'does not fit'} {card.name}"
        yield _row(section, name.removeprefix("spec-"), claimed, found, where)


def _code_and_hardware() -> Iterator[AuditRow]:
    yield AuditRow(
        section="7.1", claim="managed_forward", unit="bytes", claimed=None, computed=None,
        verdict="broken",
        why="a context manager must not yield twice, and checkpoint_sequential is not one",
    )  # fmt: skip
    major, minor = find_gpu("rtx-5080").compute_capability
    capability = major + minor / 10
    yield AuditRow(
        section="App. A", claim="compute capability", unit="capability", claimed=9.0,
        computed=capability, verdict="right" if capability == 9.0 else "wrong",
        why="9.0 is Hopper",
    )  # fmt: skip
