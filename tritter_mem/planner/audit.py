"""The memory specification's claims, each held against what follows from the formulas.

The claims are those of the specification that this project started from: a 7B BitNet model with
128K tokens on a 16 GB card. Its gigabytes are decimal. Claims about code and hardware have no
number; they carry their verdict and its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tritter_mem.config.gpus import find_gpu
from tritter_mem.config.loading import load_profile
from tritter_mem.config.schema import Profile
from tritter_mem.planner.compose import plan
from tritter_mem.planner.kv_cache import kv_cache_bytes
from tritter_mem.planner.training import optimizer_state_bytes
from tritter_mem.planner.vision import vision_bytes
from tritter_mem.planner.weights import embeddings_bytes, weights_bytes
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
        simulated: what simulation of the real model gives, once there is one.
        measured: what a device measured, once there is one.
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


def audit() -> tuple[AuditRow, ...]:
    """Every claim, in the specification's order."""
    groups: tuple[Callable[[], Iterator[AuditRow]], ...] = (
        _weights, _training_state, _cache, _windows, _activations, _checkpointing,
        _budget, _configurations, _code_and_hardware,
    )  # fmt: skip
    return tuple(row for group in groups for row in group())


def to_dict(rows: tuple[AuditRow, ...]) -> dict[str, Any]:
    """What `--json` prints."""
    return {"schema": SCHEMA, "rows": [asdict(row) for row in rows]}


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


def _total(profile: Profile) -> int:
    return plan(profile, find_gpu(profile.gpu.name)).footprint_bytes


def _weights() -> Iterator[AuditRow]:
    two_bit, vision = _7b(), _7b(model__vision="siglip-base")
    packed = _7b(weights__format="ternary-1.6bit")
    small = weights_bytes(packed) + embeddings_bytes(packed)
    yield _row(
        "1.2, 2.1", "weights, inference", 1.4, weights_bytes(two_bit) + embeddings_bytes(two_bit),
        "1.58 bits is the entropy: stored are 2 bits, and embeddings stay in bfloat16; "
        f"{small / GB:.2f} GB at 1.6 bits",
    )  # fmt: skip
    found = vision_bytes(vision)
    yield _row(
        "1.2", "vision encoder", 0.4, found,
        f"93 M parameters in bfloat16, and a projection; {2 * found / GB:.2f} GB in float32",
    )  # fmt: skip
    yield _row(
        "1.2", "all of it", 14, _total(two_bit), "the cache is twice what the specification says"
    )


def _training_state() -> Iterator[AuditRow]:
    training = _7b(workload__mode="training")
    shadow = weights_bytes(training) + embeddings_bytes(training)
    yield _row(
        "2.2", "shadow weights, float32", 14, shadow, "14 GB is float16: 7.01 B parameters * 4"
    )
    yield _row(
        "2.2", "training, weights in all", 15.4, 2 * shadow + optimizer_state_bytes(training),
        "gradients and AdamW's two moments are missing; activations come on top",
    )  # fmt: skip


def _cache() -> Iterator[AuditRow]:
    claims = {"float16": 67, "fp8": 34, "int4": 8.4, "int2": 4.2}
    for dtype, claimed in claims.items():
        scales = dtype.startswith("int")
        why = "its own formula gives twice this; scales and minima add 6%" if dtype == "int4" else (
            "its own formula gives twice this; scales and minima add 13%" if scales
            else "as its formula says")  # fmt: skip
        found = kv_cache_bytes(_7b(kv_cache__dtype=dtype))
        yield _row("3.1", f"KV cache, 128K, {dtype}", claimed, found, why)


def _windows() -> Iterator[AuditRow]:
    for window, claimed in ((4096, 0.5), (8192, 1.0)):
        found = kv_cache_bytes(_7b(model__sliding_window=window))
        why = "its formula, and scales, sinks and tail"
        yield _row("3.3", f"KV cache, {window // 1024}K window, int4", claimed, found, why)
    yield AuditRow(
        section="3.3", claim="effective 128K by a window", unit="bytes", claimed=None,
        computed=None, verdict="misleading",
        why="memory is bounded, but tokens outside the window are not attended to",
    )  # fmt: skip


def _activations() -> Iterator[AuditRow]:
    chunked = plan(_7b(), find_gpu("rtx-5080"))
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


def _checkpointing() -> Iterator[AuditRow]:
    """Peak of activations alone, and recomputed work against forward and backward (1 + 2)."""
    claims = {"every-layer": (1, 90, 33), "every-nth:4": (4, 75, 8), "every-nth:8": (8, 60, 4)}
    base = _activation_peak("none", 1)
    for policy, (n, saved, work) in claims.items():
        name = policy.partition(":")[0]
        found = 100 * (1 - _activation_peak(name, n) / base)
        where = "every layer" if n == 1 else f"every {n}"
        why = "" if n == 1 else f"its code (i % {n} == 0) checkpoints one layer in {n}"
        yield _percent(f"checkpoint {where}, memory", saved, found, why)
        yield _percent(f"checkpoint {where}, work", work, 100 / 3 / n, "")


def _activation_peak(policy: str, n: int) -> int:
    profile = _7b(
        workload__mode="training", workload__context="8k",
        training__checkpointing={"policy": policy, "n": n},
    )  # fmt: skip
    phases = plan(profile, find_gpu(profile.gpu.name)).phases
    return max(p.components.activations_bytes for p in phases if p.components is not None)


def _percent(claim: str, claimed: float, computed: float, why: str) -> AuditRow:
    return AuditRow(
        section="4.2", claim=claim, unit="percent", claimed=claimed, computed=computed,
        verdict=judged(claimed, computed), why=why,
    )  # fmt: skip


def _budget() -> Iterator[AuditRow]:
    yield _row(
        "5.2, 8.1", "KV cache of its budget test", 10, kv_cache_bytes(_7b()),
        "its own test asks for less than 10 GB, and its function gives 17.2",
    )  # fmt: skip


def _configurations() -> Iterator[AuditRow]:
    claims = {
        "spec-maximum-context": ("6.1", 14), "spec-balanced": ("6.1", 12),
        "spec-throughput": ("6.1", 10), "spec-streaming": ("6.1", 4),
        "spec-train-full-context": ("6.2", 15), "spec-train-efficient": ("6.2", 14),
        "spec-train-development": ("6.2", 12),
    }  # fmt: skip
    for name, (section, claimed) in claims.items():
        profile = load_profile(name)
        found = _total(profile)
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
