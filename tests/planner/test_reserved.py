"""What a plan says is reserved is what a simulated run reserves: it asks for the same memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from tests.planner.cases import DETERMINED, card, profiles, tiny
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.config.loading import load_profile
from tritter_mem.config.profile import Profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.planner.case import Case
from tritter_mem.planner.compose import plan
from tritter_mem.planner.reserved import GRAPH, MAIN, InferenceRun, Reserved, find_reserved
from tritter_mem.planner.solve import find_largest, with_value
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.simulate import bundled_workload, simulate, trace

STREAMS = {"": 0, "side stream": 1}


class Listing:
    """An allocator that lists what it is asked for: bytes and stream, and of each free negated."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, object]] = []

    def malloc(self, size: int, stream: object) -> int:
        self.requests.append((size, "pool" if stream == GRAPH else stream))
        return size

    def serve(self, sizes: list[int], events: Iterable[int], held: object) -> None:
        self.requests += [(sizes[number], MAIN) for number in events]

    def free(self, size: int) -> None:
        self.requests.append((-size, 0))

    def empty_cache(self) -> None:
        pass


def planned_requests(profile: Profile) -> list[tuple[int, object]]:
    listing = Listing()
    InferenceRun(Case.of(profile, card()), listing).play()  # type: ignore[arg-type]
    return listing.requests


def simulated_requests(profile: Profile) -> list[tuple[int, object]]:
    """Bytes of each request and its stream, and of each free negated, of a simulated run."""
    log = trace(bundled_workload(profile, card(), Progress(), fast=True), card())
    found: list[tuple[int, object]] = []
    sizes: dict[int, int] = {}
    for event in log:
        if event.kind == "alloc":
            sizes[event.storage] = event.bytes
            found.append((event.bytes, STREAMS.get(event.place, "pool")))
        else:
            found.append((-sizes[event.storage], 0))
    return [(size, stream) for size, stream in found if size]


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    print_blob=True,
)
@given(profile=profiles())
def test_a_plan_asks_for_the_memory_that_a_run_asks_for(profile: Profile) -> None:
    assume(profile.workload.mode == "inference" and profile.model.vision is None)
    assume(profile.model.num_hidden_layers <= 3)
    *planned, joined = planned_requests(profile)
    assert planned == simulated_requests(profile)[: len(planned)]
    # A shortened run joins fewer tokens at its end than the plan, which has them all.
    assert joined == (8 * profile.workload.batch * profile.workload.new_tokens, 0)


@pytest.mark.parametrize("name", DETERMINED)
def test_a_plan_asks_for_what_each_step_of_a_run_asks_for(name: str) -> None:
    profile = tiny(**{**DETERMINED[name], "model__num_hidden_layers": 3})
    *planned, joined = planned_requests(profile)
    assert planned == simulated_requests(profile)[: len(planned)]
    assert joined == (8 * profile.workload.batch * profile.workload.new_tokens, 0)


@pytest.mark.parametrize("name", DETERMINED)
def test_what_each_step_reserves_is_what_a_run_reserves(name: str) -> None:
    profile = tiny(**DETERMINED[name])
    found = plan(profile, card()), simulate(profile, card=card())
    assert found[0].reserved_peak_bytes == found[1].reserved_peak_bytes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"workload__cuda_graph": True},
        {"workload__batch": 2, "workload__prefill_chunk": 37, "workload__new_tokens": 34},
        {"model__num_hidden_layers": 9, "model__sliding_window": 64},
        {"weights__format": "bfloat16", "workload__batch": 3, "kv_cache__dtype": "fp8"},
        {"weights__format": "int4", "weights__embedding_dtype": "int8"},
        {"allocator__conf": "expandable_segments:True"},
        {"allocator__conf": "max_split_size_mb:32", "workload__prefill_chunk": 37},
    ],
)
def test_planned_is_reserved(changes: dict[str, Any]) -> None:
    profile = tiny(workload__context=700, **changes)
    found = plan(profile, card()), simulate(profile, card=card())
    assert found[0].reserved_peak_bytes == found[1].reserved_peak_bytes


@pytest.mark.parametrize("name", ["7b", "7b-128k-hybrid", "7b-streaming-4k", "1b"])
def test_deep_models_reserve_what_few_layers_tell(name: str) -> None:
    profile = load_profile(name, {"workload.mode": "inference"})
    gpu = find_gpu(profile.gpu.name)
    use = plan(profile, gpu)
    assert use.reserved_peak_bytes == simulate(profile, fast=True).reserved_peak_bytes
    assert use.device_peak_bytes == (use.reserved_peak_bytes or 0) + gpu.context_bytes


@pytest.mark.parametrize("name", ["7b", "7b-128k-gqa", "7b-128k-int2"])
def test_the_largest_context_fits_when_it_is_simulated_and_a_hundredth_more_does_not(
    name: str,
) -> None:
    profile = load_profile(name)
    largest = find_largest(profile, "context")
    assert largest.value is not None
    fits, over = (
        simulate(with_value(profile, "context", value), fast=True).footprint_bytes
        for value in (largest.value, largest.value * 101 // 100)
    )
    assert fits <= largest.budget_bytes < over


def test_training_and_vision_towers_say_that_it_is_unknown() -> None:
    assert plan(tiny(workload__mode="training"), card()).reserved_peak_bytes is None
    tower = tiny(model__vision="siglip-base", workload__context=700)
    assert plan(tower, card()).reserved_peak_bytes is None


@given(
    steps=st.lists(st.tuples(st.integers(1, 48 << 20), st.booleans()), min_size=1, max_size=30),
    limit_mib=st.integers(4, 800),
)
def test_what_is_reserved_within_a_limit_is_what_both_plays_say(
    steps: list[tuple[int, bool]], limit_mib: int
) -> None:
    """Without a limit where that is within it or nothing fits it; else within it."""
    limit = limit_mib << 20

    def play(allocator: CachingAllocator) -> None:
        held = []
        for size, stays in steps:
            block = allocator.malloc(size, 0)
            if stays:
                held.append(block)
            else:
                allocator.free(block)

    free, limited = CachingAllocator(), CachingAllocator(capacity_bytes=limit)
    play(free)
    wanted = Reserved(free.counters.reserved.peak)
    if wanted.peak_bytes > limit:
        with suppress(OutOfMemoryError):
            play(limited)
            counters = limited.counters
            wanted = Reserved(counters.reserved.peak, counters.num_alloc_retries)
    assert find_reserved(play, "", (limit, 0)) == wanted
