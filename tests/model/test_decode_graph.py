"""The captured decode step: what it allocates, and where."""

from dataclasses import replace

import pytest
import torch

from tritter_mem.simulation.events import Event
from tritter_mem.simulation.recorder import Recorder
from tritter_mem.torch_release import random_state_bytes
from tritter_model import labels
from tritter_model.config import RunConfig
from tritter_model.decode_graph import DecodeGraph
from tritter_model.kv_cache import KVCache
from tritter_model.run import run as run_case
from tritter_model.transformer import Transformer

META = torch.device("meta")


def recorded(case: RunConfig) -> list[Event]:
    with Recorder("meta") as recorder:
        run_case(case, "meta", recorder.phase)
    return list(recorder.log)


def shape_of(events: list[Event]) -> list[tuple[str, int, str]]:
    return [(event.kind, event.bytes, event.operator) for event in events]


def test_a_step_is_run_beside_the_stream_and_then_captured(run: RunConfig) -> None:
    """The same allocations twice: on the side stream, then from the graph's pool.

    Between them, still of the side stream: what the graph keeps of the random generator.
    """
    events = [e for e in recorded(replace(run, cuda_graph=True)) if e.phase == "capture"]
    beside = [e for e in events if e.place == labels.SIDE_STREAM]
    if kept := random_state_bytes():
        *beside, seed, offset = beside
        assert (seed.bytes + offset.bytes, offset.kind) == (kept, "alloc")
    captured = [e for e in events if e.place == labels.GRAPH_POOL]
    assert shape_of(beside) == shape_of(captured)
    assert len(captured) > 10
    assert sum(e.bytes if e.kind == "alloc" else -e.bytes for e in captured) == 0
    token = [e for e in events if not e.place]
    assert [(e.kind, e.bytes) for e in token] == [("alloc", 8 * run.batch)]


def test_a_captured_step_is_the_eager_one(run: RunConfig) -> None:
    """What eager decode allocates for a token, and the copy of the token."""
    graph = [e for e in recorded(replace(run, cuda_graph=True)) if e.place == labels.GRAPH_POOL]
    eager = [e for e in recorded(replace(run, new_tokens=2)) if e.phase == "decode"]
    made = [e.operator for e in eager if e.kind == "alloc"]
    assert [e.operator for e in graph if e.kind == "alloc"] == made[
        1:-1
    ]  # argmax before, cat after


def test_replays_allocate_a_copy_of_each_token_alone(run: RunConfig) -> None:
    events = [e for e in recorded(replace(run, cuda_graph=True)) if e.phase == "decode"]
    made = [(e.operator, e.bytes) for e in events if e.kind == "alloc"]
    assert [name for name, _ in made[1:-1]] == ["aten.clone.default"] * run.steps
    assert {size for _, size in made[1:-1]} == {8 * run.batch}


def test_one_new_token_needs_no_step(run: RunConfig) -> None:
    case = replace(run, new_tokens=1)
    assert shape_of(recorded(case)) == shape_of(recorded(replace(case, cuda_graph=True)))


def test_a_cpu_has_no_graphs(run: RunConfig) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"on cpu, expected cuda, meta; set workload\.cuda_graph"):
        DecodeGraph(run, Transformer(run.model, cpu), KVCache(run, cpu))


def test_more_tokens_than_fit_are_refused(run: RunConfig) -> None:
    cache = KVCache(run, META)
    graph = DecodeGraph(run, Transformer(run.model, META), cache)
    cache.seek(run.context - 2)
    first = torch.zeros((run.batch, 1), dtype=torch.int64, device=META)
    with pytest.raises(ValueError, match="got 3 tokens behind 54, expected 56"):
        graph.decode(first, 3)
    assert graph.decode(first, 2).shape == (run.batch, 3)
    assert cache.length == run.context
