"""Entries and outcomes for the check's tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tritter_mem.check.compare import Rules, compare
from tritter_mem.results.baseline import Baseline, Entry, Figures, PhasePeaks, Tolerance
from tritter_mem.results.check import CaseOutcome, CheckReport
from tritter_mem.results.run import HeldBySame
from tritter_mem.units import GiB, MiB

PEAK = 8 * GiB
EXACT = Tolerance(relative=0.0, absolute_bytes=0)


def held(module: str, component: str, size: int, count: int = 32) -> HeldBySame:
    return HeldBySame(module=module, component=component, count=count, allocated_bytes=size)


def figures(mlp: int = 2 * GiB, reserved: int = 9 * GiB) -> Figures:
    """8 GiB at the peak, of which the MLP's activations take 2 GiB."""
    return Figures(
        allocated_peak_bytes=PEAK - 2 * GiB + mlp,
        reserved_peak_bytes=reserved,
        peak_at="prefill: Transformer.layers.*.mlp (aten.mm)",
        components={"activations": mlp, "weights": 5 * GiB, "kv_cache": GiB},
        phases={
            "load": PhasePeaks(allocated_peak_bytes=5 * GiB, reserved_peak_bytes=5 * GiB),
            "prefill": PhasePeaks(
                allocated_peak_bytes=PEAK - 2 * GiB + mlp, reserved_peak_bytes=reserved
            ),
        },
        held_at_peak=(
            held("Transformer.layers.*.mlp", "activations", mlp, 1),
            held("Transformer.layers.*", "weights", 5 * GiB),
            held("Transformer.layers.*", "kv_cache", GiB),
        ),
    )


def entry(config: str = "7b", **parts: Any) -> Entry:
    filled = {
        "kind": "simulated",
        "gpu": "rtx-5080",
        "torch": "2.13.0",
        "profile_hash": "0123456789abcdef",
        "figures": figures(),
    }
    return Entry(config=config, **(filled | parts))


def checked(now: Entry, *before: Entry, rules: Rules | None = None, **parts: Any) -> CaseOutcome:
    """What an entry comes to against a baseline of others."""
    return compare(now, Baseline(entries=before, **parts), rules or Rules())


def regression(config: str = "7b") -> CaseOutcome:
    now = entry(config, figures=figures(mlp=2 * GiB + 512 * MiB))
    return checked(now, entry(config))


def every_status(name: str = "7b") -> CheckReport:
    """One outcome of each kind, all of the same name."""
    here = entry(name)
    smaller = entry(name, figures=figures(mlp=GiB))
    outcomes = (
        checked(here, here),
        regression(name),
        checked(smaller, here),
        checked(here),
        checked(replace(here, torch="2.14.0"), here),
        checked(replace(here, profile_hash="f" * 16), here),
    )
    failed = replace(checked(here), status="failed", message=name, exit_code=3)
    return CheckReport(baseline="baseline.json", outcomes=(*outcomes, failed))
