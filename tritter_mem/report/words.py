"""What a result is called and says in words: labels, sentences and facts, for every renderer.

Names that come from a file are untrusted: `printable` makes control and direction characters
visible, so that a name can neither steer a terminal nor reorder the text beside it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from tritter_mem.results.largest import Largest
from tritter_mem.results.run import (
    KINDS,
    RUN_KINDS,
    Kind,
    ModelFacts,
    OutOfMemory,
    Result,
    Suggestion,
    Verdict,
)
from tritter_mem.results.verdict import basis_of
from tritter_mem.text import either, operators_by_name, printable
from tritter_mem.units import format_bytes, format_count

KIND_LABELS: dict[Kind, str] = {
    "planned": "Planned",
    "simulated": "Simulated",
    "rehearsed": "Rehearsed",
    "measured": "Measured",
}
LABELS = {
    "weights": "Weights",
    "embeddings": "Embeddings",
    "vision": "Vision tower",
    "kv_cache": "KV cache",
    "activations": "Activations",
    "logits": "Logits",
    "gradients": "Gradients",
    "optimizer_state": "Optimizer state",
    "workspace": "Workspace",
    "rounding": "Allocator rounding",
    "allocated_peak": "Allocated peak",
    "reserved_peak": "Reserved peak",
    "cached": "Reserved, not allocated",
    "context": "CUDA context",
    "other": "Other on the device",
    "device_peak": "Device peak",
    "resident_peak": "Resident peak",
    "budget": "Budget",
    "least": "Lower bound",
    "headroom": "Headroom",
}
MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
NAME_LIMIT = 80
TEXT_LIMIT = 500
OUTSIDE = "outside any module"
AUTO = "auto"
"""As the checkpoint has it: not worth a word."""


def label(name: str) -> str:
    """How a component, total or phase is called in a table."""
    known = LABELS.get(name)
    return known or printable(name.replace("_", " "), NAME_LIMIT).capitalize()


def name_of(result: Result) -> str:
    """The profile's name, short enough for a heading."""
    return printable(result.name, NAME_LIMIT)


def signed_bytes(count: int, units: str) -> str:
    """Bytes with their sign: `+1.20 GiB`, or with a minus sign."""
    return f"{MINUS if count < 0 else '+'}{format_bytes(abs(count), units)}"


def percent(ratio: float) -> str:
    """A signed ratio as a percentage; `equal` where nothing differs at all."""
    if ratio == 0:
        return "equal"
    shown = f"{ratio:+.1%}" if abs(ratio) >= 0.001 else f"{100 * ratio:+.1g}%"
    return shown.replace("-", MINUS)


def number(value: float) -> str:
    """Three figures, and all before the point: `0.0312`, `4.56`, `78,019`."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def headroom_words(headroom_bytes: int, units: str) -> str:
    """`6.10 GiB to spare` or `7.13 GiB over budget`."""
    size = format_bytes(abs(headroom_bytes), units)
    return f"{size} to spare" if headroom_bytes >= 0 else f"{size} over budget"


def verdict_of(result: Result, units: str) -> str:
    """Whether a result's profile fits, or why nobody can say."""
    if result.verdict is not None:
        use = result.by_kind().get(result.verdict.basis)
        at_least = use is not None and use.lower_bound_reason is not None
        return verdict_sentence(result.verdict, units, at_least=at_least)
    lower = [use for use in result.by_kind().values() if use.lower_bound_reason is not None]
    if lower:
        needs = format_bytes(lower[-1].footprint_bytes, units)
        return f"no verdict: it needs more than {needs}; some of its memory cannot be planned yet"
    return "no verdict: there is no figure to compare with the budget"


def verdict_sentence(verdict: Verdict, units: str, *, at_least: bool = False) -> str:
    """Whether it fits, what it needs, the budget and the difference, and which kind says so."""
    needs = format_bytes(verdict.budget_bytes - verdict.headroom_bytes, units)
    more = "more than " if at_least else ""
    budget = format_bytes(verdict.budget_bytes, units)
    size = format_bytes(abs(verdict.headroom_bytes), units)
    if verdict.headroom_bytes < 0:
        left = f"{size} over the budget of {budget}"
    else:
        left = f"{size} less than the budget of {budget}"
    fits = "fits" if verdict.fits else "does not fit"
    return f"{fits}: needs {more}{needs} ({verdict.basis}), {left}"


def largest_sentence(largest: Largest, units: str) -> str:
    """The largest context or batch that fits, and the next that does not."""
    budget = format_bytes(largest.budget_bytes, units)
    where = f"{printable(largest.name, NAME_LIMIT)} on {largest.gpu}, budget {budget}"
    needs = f"{format_bytes(largest.footprint_bytes, units)} ({largest.basis})"
    if largest.value is None:
        return f"{where}: no {largest.unknown} fits; the smallest needs {needs}"
    found = f"{where}: largest {largest.unknown} {largest.value:,}"
    if largest.next_value is None:
        return f"{found}, the most that a profile may ask for"
    after = "one more" if largest.next_value == largest.value + 1 else f"{largest.next_value:,}"
    return f"{found}, needs {needs}; {after} does not fit"


def suggestion_sentence(suggestion: Suggestion, units: str) -> str:
    """One change, what it saves, and whether that is enough."""
    then = "fits with" if suggestion.fits else "still"
    return (
        f"{printable(suggestion.text, TEXT_LIMIT)}: "
        f"{signed_bytes(-suggestion.saves_bytes, units)}, "
        f"{then} {headroom_words(suggestion.headroom_bytes, units)}"
    )


def suggestion_options(suggestion: Suggestion) -> str:
    """The options that apply the change: `--set model.num_key_value_heads=8`."""
    return " ".join(
        f"--set {shlex.quote(printable(f'{key}={value}'))}"
        for key, value in flatten(suggestion.settings)
    )


def cards_sentence(verdict: Verdict | None) -> str:
    """Which cards would hold it as it is; empty where none is known."""
    if verdict is None or not verdict.cards:
        return ""
    return f"or use a larger card: by the plan, it fits on {either(verdict.cards)} as it is"


def missing_kinds(result: Result) -> list[str]:
    """Why kinds of answer are missing, those with one reason in one line."""
    missing: dict[str, list[str]] = {}
    for kind in KINDS:
        reason = getattr(result, f"{kind}_reason")
        if reason and getattr(result, kind) is None:
            missing.setdefault(reason, []).append(f"not {kind}")
    return [
        f"{' and '.join(kinds)}: {printable(reason, TEXT_LIMIT)}"
        for reason, kinds in missing.items()
    ]


def devices_sentence(result: Result) -> str:
    """Which device each kind of number is for."""
    words = {
        "planned": "planned for",
        "simulated": "simulated for",
        "rehearsed": "rehearsed on",
        "measured": "measured on",
    }
    return ", ".join(
        f"{words[kind]} {printable(use.device, NAME_LIMIT)}"
        + (" (repeated chunks and tokens skipped)" if use.shortened else "")
        for kind, use in result.by_kind().items()
    )


def notes(result: Result) -> list[str]:
    """What each kind of number is for, why some are missing, and what ran at each peak."""
    peaks = [
        f"{kind} peak at {moment_words(use.peak_at)}"
        for kind, use in result.by_kind().items()
        if use.peak_at
    ]
    lower = [
        f"{kind} is a lower bound: {printable(use.lower_bound_reason, TEXT_LIMIT)}"
        for kind, use in result.by_kind().items()
        if use.lower_bound_reason is not None
    ]
    lower += [
        f"{kind}: the allocator frees its cache {_times(use.cache_releases)} to stay within the "
        "budget, and waits for the GPU each time"
        for kind, use in result.by_kind().items()
        if use.cache_releases
    ]
    lower += [f"{kind}: {use.caveat}" for kind, use in result.by_kind().items() if use.caveat]
    found = [*_model_sentences(result), *lower, devices_sentence(result), *peaks]
    found += [*missing_kinds(result), _cpu_sentence(result)]
    return [note for note in (*found, *_refusals(result), *_unread(result)) if note]


def moment_words(peak_at: str) -> str:
    """What ran at a peak: `prefill: Transformer.layers.3.mlp, new_empty()`."""
    return printable(operators_by_name(peak_at), TEXT_LIMIT)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _model_sentences(result: Result) -> Iterator[str]:
    """What a named model is, and what of it is not counted."""
    model = _named_model(result)
    if model is None:
        return
    active = model.active_parameters < model.language_parameters
    name, runtime = (printable(text, NAME_LIMIT) for text in (model.architecture, model.runtime))
    yield (
        f"{name} as {runtime} runs it: "
        f"{parameters_words(model.parameters)}"
        + (f", {parameters_words(model.active_parameters)} active per token" if active else "")
        + f"; each token adds {format_bytes(model.kv_bytes_per_token)} of KV cache"
    )
    if model.stored_bytes is not None:
        yield f"the checkpoint holds {format_bytes(model.stored_bytes)} of weights"
    if model.dequantises:
        stored = format_bytes(model.weight_bytes)
        yield f"{runtime} dequantises its weights, which the checkpoint stores in {stored}"
    for what in model.unsupported:
        yield f"not counted: {printable(what, TEXT_LIMIT)}"


def parameters_words(count: int) -> str:
    """`8.03 B parameters`; all digits below 100 million."""
    return f"{count / 1e9:,.2f} B parameters" if count >= 10**8 else f"{count:,} parameters"


def _refusals(result: Result) -> list[str]:
    """The request that a card could not serve, simulated or measured."""
    ends = dict.fromkeys(RUN_KINDS, "; its figures end there")
    return [
        f"{kind}: out of memory{_where(refused)}: asked for "
        f"{format_bytes(refused.requested_bytes)} with {format_bytes(refused.reserved_bytes)} of "
        f"{format_bytes(refused.limit_bytes)} reserved{ends.get(kind, '')}"
        for kind, use in result.by_kind().items()
        if (refused := use.out_of_memory) is not None
    ]


def _where(refused: OutOfMemory) -> str:
    """` in decode, Transformer.layers.3.mlp, mm()`, as far as it is known."""
    place = ", ".join(filter(None, (refused.phase, refused.module)))
    shown = printable(place, TEXT_LIMIT)
    operator = f" ({printable(refused.operator, NAME_LIMIT)})" if refused.operator else ""
    return operators_by_name((f" in {shown}" if shown else "") + operator)


def _unread(result: Result) -> list[str]:
    """Why figures of a measured run are missing, or how they were obtained."""
    ran = result.measured or result.rehearsed
    run = ran.run if ran else None
    if run is None:
        return []
    found = {
        "components are not measured: ": run.components_reason,
        "fragmentation is not measured: ": run.fragmentation_reason,
        "fragmentation is that of ": run.fragmentation_source,
    }
    said = [f"{what}{why}" for what, why in found.items() if why]
    return [printable(line, TEXT_LIMIT) for line in (*said, *run.unread)]


def _cpu_sentence(result: Result) -> str:
    """What a comparison with the CPU leaves out."""
    if result.measured is None or result.measured.device != "cpu":
        return ""
    on_gpu = [use for use in result.by_kind().values() if use.library_workspace_bytes]
    if not on_gpu:
        return ""
    workspace = format_bytes(on_gpu[-1].library_workspace_bytes)
    return (
        f"* a run on the CPU has no cuBLAS workspace ({workspace} on {on_gpu[-1].device}) and no "
        "allocator that rounds sizes up; the comparison leaves both out"
    )


def fragmentation_sentence(result: Result, units: str) -> str:
    """What the allocator holds and cannot use, by the verdict's basis; empty where not known."""
    basis = basis_of(result)
    found = result.by_kind()[basis].fragmentation if basis else None
    if found is None:
        return ""
    return (
        f"{format_bytes(found.reserved_not_allocated_bytes, units)} reserved but not "
        f"allocated at the reserved peak ({found.ratio:.1%}); largest free block "
        f"{format_bytes(found.largest_free_block_bytes, units)}; "
        f"{format_bytes(found.inactive_split_bytes, units)} in split blocks"
    )


def setting(profile: dict[str, Any], path: str) -> Any:
    """A value of the resolved profile by dotted path; None where it is not there."""
    found: Any = profile
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def setup_facts(result: Result) -> list[str]:
    """The few settings that a reader needs to place the numbers."""
    training = setting(result.profile, "workload.mode") == "training"
    found = (
        (setting(result.profile, path), text)
        for path, text in (_TRAINING_FACTS if training else _INFERENCE_FACTS)
    )
    facts = [text.format(_fact(value)) for value, text in found if value not in (None, AUTO)]
    named = _named_model(result)
    return facts if named is None else [printable(named.architecture, NAME_LIMIT), *facts]


def _named_model(result: Result) -> ModelFacts | None:
    """What a named model is; None for the bundled one, and where it is not known."""
    model = result.model
    return None if model is None or model.architecture == "tritter" else model


_COMMON_FACTS = (
    ("workload.mode", "{}"),
    ("workload.context", "{} tokens"),
    ("workload.batch", "batch {}"),
)
_INFERENCE_FACTS = (
    *_COMMON_FACTS,
    ("weights.format", "{} weights"),
    ("weights.quantization", "{} weights"),
    ("kv_cache.dtype", "{} KV cache"),
    ("gpu.name", "{}"),
)
_TRAINING_FACTS = (
    *_COMMON_FACTS,
    ("training.optimizer", "{}"),
    ("training.checkpointing.policy", "checkpointing {}"),
    ("gpu.name", "{}"),
)


def _fact(value: object) -> str:
    return format_count(value) if isinstance(value, int) else printable(value, NAME_LIMIT)


def flatten(settings: object, path: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted keys and values, as `--set` takes them."""
    if isinstance(settings, dict) and settings:
        prefix = f"{path}." if path else ""
        return [pair for key, value in settings.items() for pair in flatten(value, prefix + key)]
    return [(path, _scalar(settings))]


def _scalar(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
