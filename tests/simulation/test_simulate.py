"""A simulation: the bundled profiles against their plans, names of modules, the trace, progress."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulate import run as planned_and_simulated
from benchmarks.trace_reader import load_log
from tests.planner.cases import card, tiny
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.config.bundled_files import bundled_profiles
from tritter_mem.config.profile import Profile
from tritter_mem.errors import ConfigError, OutputError
from tritter_mem.models.bundled import run_settings
from tritter_mem.planner.compose import plan
from tritter_mem.simulation.events import EventLog
from tritter_mem.simulation.peaks import live_bytes
from tritter_mem.simulation.playback import Limit, find_out_of_memory
from tritter_mem.simulation.progress import Progress, layer_passes
from tritter_mem.simulation.simulate import bundled_workload, simulate, trace


@pytest.mark.parametrize("name", bundled_profiles())
def test_a_bundled_profile_is_planned_as_it_is_simulated(name: str) -> None:
    """Allocated within 2%, components of over 1% within 3%; the benchmark leaves nothing out."""
    case = planned_and_simulated(name, fast=True)
    assert case.problems == []
    assert case.components


def test_only_the_allocator_s_rounding_sets_a_plan_apart_from_a_simulation() -> None:
    planned, simulated = plan(tiny(), card()), simulate(tiny())
    parts = simulated.components.items()
    assert {**parts, "rounding": 0} == planned.components.items()
    assert simulated.allocated_peak_bytes - planned.allocated_peak_bytes == parts["rounding"] > 0


def test_fast_leaves_out_what_repeats_and_finds_the_same_memory() -> None:
    profile = tiny(workload__context="2k", workload__prefill_chunk=64, workload__new_tokens=16)
    whole, fast = simulate(profile), simulate(profile, fast=True)
    assert (whole.shortened, fast.shortened) == (False, True)
    assert fast.components == whole.components
    assert fast.reserved_peak_bytes == whole.reserved_peak_bytes
    peaks = [phase.allocated_peak_bytes for phase in fast.phases]
    assert peaks[:2] == [phase.allocated_peak_bytes for phase in whole.phases][:2]
    assert fast.timeline is not None
    assert whole.timeline is not None
    assert fast.timeline.rows[-1][0] < whole.timeline.rows[-1][0] / 2


def test_a_difference_beyond_the_limits_is_a_problem() -> None:
    good = planned_and_simulated("tiny")
    size = good.planned_bytes
    parts = {"weights": (100, 104), "kv_cache": (100, 102), "logits": (0, 5)}
    bad = replace(good, simulated_bytes=size * 103 // 100, components=parts)
    names = [problem.split()[0] for problem in bad.problems]
    assert names == ["weights", "logits", "allocated"]


def traced(profile: Profile) -> EventLog:
    return trace(bundled_workload(profile, card(), Progress()), card())


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_layer_s_memory_has_the_layer_s_name(mode: str) -> None:
    """Attention and its scratch too, which no submodule of the layer allocates."""
    log = traced(tiny(workload__mode=mode, workload__context=200, workload__prefill_chunk=64))
    phases = ("forward",) if mode == "training" else ("prefill", "decode")
    for phase in phases:
        inside = [e for e in log if e.phase == phase and e.kind == "alloc"]
        for layer in range(4):
            own = [e for e in inside if e.module == f"Transformer.layers.{layer}"]
            assert {e.category for e in own} >= {"activations"}
            assert any(e.module.startswith(f"Transformer.layers.{layer}.") for e in inside)
        unnamed = [e for e in inside if not e.module]
        # The embedded tokens, the logits and the next tokens are of no layer.
        assert len(unnamed) < len(inside) / 10


def test_out_of_memory_names_the_module_that_hits_it() -> None:
    """There is room for the weights and the cache, and 40 MiB more; a long prompt needs more."""
    log = traced(tiny(workload__context=4096, workload__prefill_chunk=2048))
    load = log.spans[0]
    capacity = max(live_bytes(log)[: load.end + 1]) + (40 << 20)
    found = find_out_of_memory(log, parse_alloc_conf(""), Limit(capacity, 0))
    assert found is not None
    assert found.phase == "prefill"
    assert found.module.startswith("Transformer.layers.")


def test_the_trace_is_that_of_the_simulation(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "trace.gz"
    use = simulate(tiny(), save_trace=path)
    log = load_log(path)
    assert list(log) == list(traced(tiny()))
    assert {phase.name for phase in use.phases} == {"load", "prefill", "decode"}
    # The allocator rounds to blocks, so what it gave is no less than what was asked for.
    assert 1 <= use.allocated_peak_bytes / max(live_bytes(log)) < 1.02


def test_a_trace_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        simulate(tiny(), save_trace=tmp_path)


def test_wrong_allocator_settings_are_an_error() -> None:
    with pytest.raises(ConfigError):
        simulate(tiny(allocator__conf="max_split_size_mb:1"))


CHECKPOINTING = [
    {"policy": policy, "n": n}
    for policy, n in (
        ("none", 1), ("every-layer", 1), ("every-nth", 3), ("segments", 3),
        ("selective-attention", 1), ("selective-matmul", 1),
    )
]  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"workload__context": 200, "workload__new_tokens": 1},
        {"workload__context": 100, "workload__prefill_chunk": 300},
        {"workload__context": 111, "workload__prefill_chunk": 10, "workload__new_tokens": 10},
        {"workload__context": 21, "workload__prefill_chunk": 10, "workload__new_tokens": 10},
        {"model__vision": "siglip-base"},
        *({"workload__mode": "training", "training__checkpointing": c} for c in CHECKPOINTING),
    ],
)
def test_progress_ends_at_its_total(settings: dict[str, Any]) -> None:
    profile, progress = tiny(**settings), Progress()
    trace(bundled_workload(profile, card(), progress), card())
    assert progress.done == progress.total == layer_passes(run_settings(profile, card()))
    assert (progress.layers, progress.phase) == (4, "")
    assert 1 <= progress.layer <= 4


def test_progress_names_phases_and_layers_as_they_run() -> None:
    seen = []

    class Watched(Progress):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "done":
                seen.append((self.phase, self.layer))

    progress = Watched()
    trace(bundled_workload(tiny(workload__prefill_chunk=300), card(), progress), card())
    once = [(phase, layer) for phase in ("prefill", "decode") for layer in (1, 2, 3, 4)]
    found = [place for place in dict.fromkeys(seen) if place[0] in ("prefill", "decode")]
    assert found == once


def test_progress_begins_anew() -> None:
    progress = Progress()
    trace(bundled_workload(tiny(), card(), progress), card())
    progress.begin("another")
    assert (progress.task, progress.done, progress.total, progress.layer) == ("another", 0, 0, 0)
