"""Realistic records for the reporters' tests, built from the specification's own arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tritter_mem.results.run import (
    CheckpointCase,
    Components,
    ContextCurve,
    Environment,
    Fragmentation,
    Holding,
    Kind,
    MemoryUse,
    Phase,
    Result,
    Segment,
    SegmentBlock,
    Suggestion,
    Timeline,
)
from tritter_mem.results.verdict import compare, judge
from tritter_mem.units import GiB, MiB

PLANNING = Environment(python="3.11.2")
MEASURING = Environment(
    python="3.11.2",
    torch="2.13.0+cu130",
    triton="3.6.0",
    cuda="13.0",
    driver="580.82.07",
    gpu="NVIDIA H100 80GB HBM3",
    total_bytes=85_520_809_984,
    allocator_conf="expandable_segments:True",
)


def profile(name: str, **workload: Any) -> dict[str, Any]:
    """A resolved profile, cut to what reports read."""
    return {
        "name": name,
        "description": "",
        "model": {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "tie_word_embeddings": False,
            "sliding_window": None,
        },
        "weights": {"format": "ternary-2bit", "embedding_dtype": "bfloat16"},
        "kv_cache": {"dtype": "int4", "group_size": 128, "attention_sinks": 4},
        "workload": {"mode": "inference", "context": 131072, "batch": 1, **workload},
        "training": {"optimizer": "adamw", "checkpointing": {"policy": "every-nth", "n": 4}},
        "gpu": {"name": "rtx-5080", "budget": 15 * GiB},
        "allocator": {"conf": ""},
    }


def record(name: str = "7b", **parts: Any) -> Result:
    """A result with everything that has no bearing on a test filled in."""
    filled = {
        "created": "2026-01-05T09:30:00Z",
        "tool_version": "0.1.0",
        "environment": PLANNING,
        "profile": profile(name),
        "profile_hash": "sha256:4be1c0",
    }
    return Result(**(filled | parts))


def planned_7b(name: str = "7b-128k", kv_cache_bytes: int = 18_253_611_008) -> Result:
    """7B with 128K tokens and 32 KV heads, planned only: does not fit 15 GiB."""
    parts = Components(
        weights_bytes=1_620_901_376,
        embeddings_bytes=1_073_741_824,
        kv_cache_bytes=kv_cache_bytes,
        activations_bytes=312_475_648,
        logits_bytes=131_072,
        workspace_bytes=8_519_680,
    )
    peak = parts.total_bytes
    use = MemoryUse(
        device="rtx-5080",
        components=parts,
        phases=(
            Phase(name="load", allocated_peak_bytes=2_694_643_200),
            Phase(name="prefill", allocated_peak_bytes=peak),
            Phase(name="decode", allocated_peak_bytes=peak - 290_455_552),
        ),
        allocated_peak_bytes=peak,
        peak_at="prefill: MLP of a layer",
        context_bytes=530 * MiB,
        device_peak_bytes=peak + 530 * MiB,
    )
    suggestions = (
        suggestion("8 KV heads", {"model.num_key_value_heads": 8}, 13_690_208_256, use),
        suggestion("KV cache in INT2", {"kv_cache.dtype": "int2"}, 8_589_934_592, use),
        suggestion("context 96K", {"workload.context": 98304}, 4_563_402_752, use),
    )
    uses = {"planned": use}
    return record(
        name,
        planned=use,
        simulated_reason="this command only plans",
        measured_reason="this command only plans",
        verdict=judge(uses, 15 * GiB, suggestions),
        differences=compare(uses),
    )


def suggestion(text: str, settings: dict[str, Any], saves: int, before: MemoryUse) -> Suggestion:
    """A change planned against 15 GiB."""
    headroom = 15 * GiB - (before.footprint_bytes - saves)
    return Suggestion(
        text=text,
        settings=settings,
        saves_bytes=saves,
        fits=headroom >= 0,
        headroom_bytes=headroom,
    )


def tiny_on_cpu() -> Result:
    """A tiny model, planned for a card and run for real on a CPU: activations differ by 5%."""
    planned = Components(
        weights_bytes=1_196_032,
        embeddings_bytes=1_048_576,
        kv_cache_bytes=313_344,
        activations_bytes=1_310_720,
        logits_bytes=8_192,
    )
    measured = replace(planned, activations_bytes=1_376_256, workspace_bytes=512)
    on_card = replace(planned, workspace_bytes=8_519_680)
    uses: dict[Kind, MemoryUse] = {
        "planned": replace(
            tiny_use("rtx-5080", on_card),
            library_workspace_bytes=8_519_680,
            context_bytes=384 * MiB,
            device_peak_bytes=on_card.total_bytes + 384 * MiB,
        ),
        "measured": replace(
            tiny_use("cpu", measured, (0.031, 0.412, 0.296)),
            resident_peak_bytes=402_653_184,
        ),
    }
    return record(
        environment=replace(PLANNING, torch="2.13.0+cpu"),
        profile=profile("tiny", context=512),
        **uses,
        simulated_reason="simulation was not asked for",
        verdict=judge({"planned": uses["planned"]}, 15 * GiB),
        differences=compare(uses),
    )


def tiny_use(device: str, parts: Components, seconds: tuple[float, ...] | None = None) -> MemoryUse:
    """Load, prefill and decode of the tiny model."""
    peak = parts.total_bytes
    names, peaks = ("load", "prefill", "decode"), (2_244_608, peak, peak - 1_000_000)
    return MemoryUse(
        device=device,
        components=parts,
        phases=tuple(
            Phase(name=n, allocated_peak_bytes=p, seconds=seconds[i] if seconds else None)
            for i, (n, p) in enumerate(zip(names, peaks, strict=True))
        ),
        allocated_peak_bytes=peak,
    )


def training_1b() -> Result:
    """1B in training, with all three kinds of number, fragmentation and a timeline; fits."""
    planned = Components(
        weights_bytes=4_400_193_536,
        embeddings_bytes=537_133_056,
        activations_bytes=1_932_735_283,
        logits_bytes=268_435_456,
        gradients_bytes=2_468_663_296,
        optimizer_state_bytes=2_481_000_448,
        workspace_bytes=17_039_360,
    )
    simulated = replace(planned, activations_bytes=1_951_219_712)
    measured = replace(planned, activations_bytes=1_957_691_392, workspace_bytes=67_108_864)
    uses = {
        "planned": training_use("rtx-5080", planned, None),
        "simulated": at_the_peak(training_use("rtx-5080", simulated, 1.015)),
        "measured": replace(
            training_use("cuda:0", measured, 1.019),
            phases=training_phases(measured.total_bytes, 1.019, (0.21, 0.47, 0.08)),
            tokens_per_second=21_557.9,
        ),
    }
    settings = profile("1b-training", mode="training", context=8192, batch=2)
    return record(
        environment=MEASURING,
        profile=settings,
        **uses,
        verdict=judge(uses, 15 * GiB),
        differences=compare(uses),
        checkpointing=TRADE_OFF,
    )


TRADE_OFF = tuple(
    CheckpointCase(
        policy=policy,
        n=n,
        allocated_peak_bytes=11_900_000_000 - saved * MiB,
        reserved_peak_bytes=12_100_000_000 - saved * MiB,
        activations_peak_bytes=2_900_000_000 - saved * MiB,
        flops=104_000_000_000_000 + recomputed,
        recomputed_flops=recomputed,
        on_front=on_front,
    )
    for policy, n, saved, recomputed, on_front in (
        ("none", 1, 0, 0, True),
        ("every-nth", 4, 610, 8_600_000_000_000, True),
        ("segments", 4, 2080, 34_500_000_000_000, False),
        ("every-layer", 1, 2200, 34_500_000_000_000, True),
    )
)


def training_phases(
    peak: int, reserve: float | None, seconds: tuple[float, ...] | None = None
) -> tuple[Phase, ...]:
    """Forward, backward and optimizer, of which backward has the peak."""
    peaks = {"forward": peak - 2_100_000_000, "backward": peak, "optimizer": peak - 1_700_000_000}
    return tuple(
        Phase(
            name=name,
            allocated_peak_bytes=size,
            reserved_peak_bytes=round(size * reserve) if reserve else None,
            seconds=seconds[i] if seconds else None,
            tokens_per_second=16_384 / seconds[i] if seconds else None,
        )
        for i, (name, size) in enumerate(peaks.items())
    )


def training_use(device: str, parts: Components, reserve: float | None) -> MemoryUse:
    """A training step; with `reserve`, what the allocator holds for each byte allocated."""
    peak = parts.total_bytes
    reserved = round(peak * reserve) if reserve else None
    return MemoryUse(
        device=device,
        components=parts,
        phases=training_phases(peak, reserve),
        allocated_peak_bytes=peak,
        reserved_peak_bytes=reserved,
        context_bytes=530 * MiB,
        device_peak_bytes=(reserved or peak) + 530 * MiB,
        fragmentation=fragmentation(reserved - peak, reserved) if reserved else None,
        timeline=timeline(parts, reserved) if reserved else None,
    )


def at_the_peak(use: MemoryUse) -> MemoryUse:
    """With its components held by layers, and in segments of a block and a gap each."""
    layers = 16
    held = [
        Holding(
            module=f"Transformer.layers.{i}.mlp" if name == "activations" else "Transformer",
            component=name,
            allocated_bytes=size // layers,
        )
        for name, size in use.components.items().items()
        for i in range(layers)
        if size
    ]
    segments = [
        Segment(
            size_bytes=h.allocated_bytes + 2 * MiB,
            blocks=(
                SegmentBlock(size_bytes=h.allocated_bytes, component=h.component),
                SegmentBlock(size_bytes=2 * MiB, component=""),
            ),
        )
        for h in held
    ]
    return replace(use, held_at_peak=tuple(held), segments=tuple(segments))


def fragmentation(gap: int, reserved: int) -> Fragmentation:
    """`gap` bytes reserved and not allocated."""
    return Fragmentation(
        reserved_not_allocated_bytes=gap,
        ratio=gap / reserved,
        largest_free_block_bytes=gap // 2,
        inactive_split_bytes=gap // 3,
    )


def timeline(parts: Components, reserved: int, rows: int = 120) -> Timeline:
    """Activations rise in the forward third and fall in the backward one; the rest stands still."""
    fixed = parts.items()
    moving = fixed.pop("activations")
    used = {name: size for name, size in fixed.items() if size}
    columns = ("seconds", "phase", "allocated_bytes", "reserved_bytes", "activations_bytes")
    return Timeline(
        columns=(*columns, *(f"{name}_bytes" for name in used)),
        rows=tuple(
            timeline_row(step, rows, moving, list(used.values()), reserved) for step in range(rows)
        ),
    )


def timeline_row(
    step: int, rows: int, moving: int, fixed: list[int], reserved: int
) -> tuple[float, ...]:
    """One row: time, phase number, allocated, reserved, activations, the fixed parts."""
    third = rows / 3
    live = round(moving * (step / third if step < third else max(0.0, 2 - step / third)))
    phase = min(2, int(step // third))
    return (step * 0.01, phase, live + sum(fixed), reserved, live, *fixed)


def many(count: int = 20) -> list[Result]:
    """Profiles of one model with ever smaller KV caches, and a training run among them."""
    step = 18_253_611_008 // count
    planned = [planned_7b(f"7b-route-{i:02}", 18_253_611_008 - i * step) for i in range(count - 1)]
    return [*planned, training_1b()]


def curves(*cache_dtypes: str) -> tuple[ContextCurve, ...]:
    """A curve for each type of cache, of the first two KV head counts; the first is its own."""
    return tuple(
        ContextCurve(
            cache_dtype=cache_dtype,
            kv_heads=32 >> number,
            own=number == 0,
            points=tuple((length, GiB + 1024 * length) for length in (4096, 5120, 8192)),
            largest_context=None if number else 6000,
        )
        for number, cache_dtype in enumerate(cache_dtypes)
    )


HOSTILE_NAMES = (
    "<script>document.title='owned'</script>",
    "</script><img src=x onerror=\"document.title='owned'\">",
    "\"quotes\" 'both' & `ticks` $math$ {{ 7*7 }} <b>bold</b>",
    "abc\u202edcba\u2028\u0000\x1b[31mred",
    "n" * 10_000,
)


def hostile(name: str) -> Result:
    """A record that says `name` wherever a file can put text."""
    good = training_1b()
    uses = {
        kind: replace(e, device=name, phases=(replace(e.phases[0], name=name), *e.phases[1:]))
        for kind, e in good.by_kind().items()
    }
    verdict = judge(uses, GiB, [suggestion(name, {name: name}, GiB, uses["planned"])])
    return replace(
        good,
        **uses,
        created=name,
        tool_version=name,
        profile_hash=name,
        profile={**profile(name), name: {name: [name]}},
        environment=replace(MEASURING, gpu=name, allocator_conf=name),
        verdict=verdict,
        context_curves=curves(name, "int4"),
        measured_reason=name,
    )
