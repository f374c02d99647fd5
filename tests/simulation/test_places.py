"""Side streams and a graph's private pool in a recorded run: worked out by hand."""

from pathlib import Path

from benchmarks.trace_reader import load_log
from tritter_mem.allocator.caching_allocator import CachingAllocator
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.config.loading import load_profile
from tritter_mem.simulation.events import EventLog
from tritter_mem.simulation.playback import Places, play
from tritter_mem.simulation.simulate import simulate
from tritter_mem.simulation.trace_file import save_log
from tritter_mem.units import MiB
from tritter_model.labels import GRAPH_POOL, SIDE_STREAM


def log_of(*requests: tuple[int, str]) -> EventLog:
    """Allocations of some MiB at some places, each freed at once."""
    log = EventLog()
    for size, place in requests:
        number = log.alloc(size * MiB, operator="empty", module="", category="activations")
        if place:
            log.places[number] = place
        log.free(number, module="")
    return log


def reserved(log: EventLog) -> list[int]:
    """MiB of all segments, wherever that changed."""
    played = play(log, AllocatorSettings())
    return [size // MiB for _, size in played.reserved]


def test_streams_share_no_blocks() -> None:
    """12 MiB each: a segment for each stream, and the second request of each reuses it."""
    log = log_of((12, ""), (12, SIDE_STREAM), (12, ""), (12, SIDE_STREAM))
    assert reserved(log) == [0, 12, 24]


def test_the_cache_is_given_back_where_a_capture_begins() -> None:
    """24 MiB cached go; the graph's 12 come; within one capture nothing goes again."""
    log = log_of((12, ""), (12, SIDE_STREAM), (12, GRAPH_POOL), (12, GRAPH_POOL))
    assert reserved(log) == [0, 12, 24, 12]


def test_live_blocks_stay_where_a_capture_begins() -> None:
    """The first 12 MiB are in use: 12 of 24 go, 14 come."""
    log = EventLog()
    log.alloc(12 * MiB, operator="empty", module="", category="weights")
    beside = log_of((12, SIDE_STREAM), (14, GRAPH_POOL))
    for event in beside:
        if event.kind == "alloc":
            number = log.alloc(event.bytes, operator="", module="", category="activations")
            log.places[number] = event.place
        else:
            log.free(number, module="")
    assert reserved(log) == [0, 12, 24, 26]


def test_a_graph_keeps_its_segments_and_serves_no_one_else() -> None:
    """Behind the capture 12 MiB take a segment of their own, though the pool's is free."""
    assert reserved(log_of((12, GRAPH_POOL), (12, ""), (12, ""))) == [0, 12, 24]
    allocator = CachingAllocator()
    stream = Places(allocator).stream(GRAPH_POOL)
    allocator.free(allocator.malloc(12 * MiB, stream))
    allocator.empty_cache()
    assert allocator.reserved_bytes == 12 * MiB


def test_small_requests_have_their_own_segment_in_the_pool() -> None:
    """1 KiB: a segment of 2 MiB on the device's stream, another in the pool."""
    log = EventLog()
    for place in ("", GRAPH_POOL):
        number = log.alloc(1024, operator="", module="", category="activations")
        if place:
            log.places[number] = place
    assert reserved(log) == [0, 2, 4]


def test_a_simulated_capture_holds_a_pool_and_a_second_workspace() -> None:
    """The pool's segments stay through prefill and decode; replays add nothing to them."""
    keys = {"workload.new_tokens": 3, "kv_cache.attention_sinks": 0}
    eager, graph = (
        simulate(load_profile("tiny", keys | {"workload.cuda_graph": asked}), fast=True)
        for asked in (False, True)
    )
    assert [phase.name for phase in graph.phases] == ["load", "capture", "prefill", "decode"]
    assert graph.library_workspace_bytes == 2 * eager.library_workspace_bytes
    decode = graph.phases[-1]
    assert decode.reserved_peak_bytes == graph.phases[-2].reserved_peak_bytes
    assert decode.reserved_peak_bytes > eager.phases[-1].reserved_peak_bytes


def test_places_are_written_and_read(tmp_path: Path) -> None:
    log = log_of((1, ""), (1, SIDE_STREAM), (2, GRAPH_POOL))
    save_log(log, tmp_path / "trace.gz")
    assert list(load_log(tmp_path / "trace.gz")) == list(log)
