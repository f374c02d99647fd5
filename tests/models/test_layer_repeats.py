"""Layers that repeat another one ask for what they would have asked for themselves."""

from __future__ import annotations

import pytest

from tests.models.tiny_models import BUILT, tiny_config
from tritter_mem.config.profile import Training, Workload
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.formats import storage_format
from tritter_mem.models.huggingface import read_config
from tritter_mem.models.huggingface_families import all_families
from tritter_mem.models.layer_repeats import Part, Repeats
from tritter_mem.models.layer_run import Dialect, LayerRun, Step
from tritter_mem.models.shape_tensors import FLOAT, Operations, Requests, Tensor
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.planner.transformers_engine import play_run

CARD = find_gpu("h100")
PLANNED = tuple(name for name in BUILT if all_families()[name].dialect is not None)
WHOLE = {"mamba", "mamba2", "falcon_mamba", "minimax"}
"""Whose prompts transformers cannot cut."""


def requests(run: TransformersRun) -> tuple[object, ...]:
    played = play_run(run, CARD)
    asked = played.requests
    return asked.sizes, asked.components, asked.events, asked.places, played.spans


@pytest.mark.parametrize(
    ("kind", "chunk"),
    [*((kind, None) for kind in PLANNED), *((kind, 16) for kind in PLANNED if kind not in WHOLE)],
)
def test_a_run_asks_for_the_same_as_one_whose_layers_all_run(
    kind: str, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(kind, 0)
    run = TransformersRun(
        config=config,
        model=read_config(config),
        dtype=storage_format("bfloat16"),
        work=Workload(context=64, batch=2, new_tokens=4),
        prefill_chunk=chunk,
        training=Training(),
    )
    repeated = requests(run)

    def each(repeats: Repeats, kind: object, part: Part, x: Tensor, run: LayerRun) -> Tensor:
        return part(x, run)

    monkeypatch.setattr(Repeats, "run", each)
    assert requests(run) == repeated


class Layers:
    """Layers of one kind over a residual stream of four numbers, and how many of them ran."""

    def __init__(self, part: Part) -> None:
        self.ops = Operations(CARD, 0)
        self.step = Step(
            ops=self.ops, dialect=Dialect(), size=FLOAT, batch=1, tokens=4, past=0, caches=True
        )
        self.part, self.ran = part, 0

    def run(self, count: int) -> list[dict[str, Tensor]]:
        """The caches of so many layers."""
        repeats = Repeats(self.ops.requests)
        caches: list[dict[str, Tensor]] = [{} for _ in range(count)]
        x = self.ops.new((4,), FLOAT)
        for cache in caches:
            run = LayerRun(step=self.step, kind="", weights={}, cache=cache)
            x = repeats.run("layer", self._counted, x, run)
        return caches

    def _counted(self, x: Tensor, run: LayerRun) -> Tensor:
        self.ran += 1
        return self.part(x, run)


def caching(x: Tensor, run: LayerRun) -> Tensor:
    run.cache["keys"] = run.ops.new((2, 4), FLOAT)
    run.cache["values"] = run.ops.slice(run.cache["keys"], 0, 1)
    return run.ops.pointwise(x)


def test_equal_layers_run_once_and_each_has_a_cache_of_its_own() -> None:
    layers = Layers(caching)
    caches = layers.run(3)
    assert layers.ran == 1
    storages = [cache["keys"].storage for cache in caches]
    assert len({storage.number for storage in storages if storage is not None}) == 3
    assert all(cache["values"].storage is cache["keys"].storage for cache in caches)
    ended = _ended(layers.ops.requests)
    del storages
    caches.clear()
    assert len(_ended(layers.ops.requests)) == len(ended) + 3


def test_what_a_layer_replaces_in_its_cache_goes_once() -> None:
    def replacing(x: Tensor, run: LayerRun) -> Tensor:
        old = run.cache.get("state")
        run.cache["state"] = run.ops.new((8,), FLOAT)
        del old
        return run.ops.pointwise(x)

    layers = Layers(replacing)
    repeats = Repeats(layers.ops.requests)
    caches: list[dict[str, Tensor]] = [{"state": layers.ops.new((8,), FLOAT)} for _ in range(3)]
    x = layers.ops.new((4,), FLOAT)
    for cache in caches:
        run = LayerRun(step=layers.step, kind="", weights={}, cache=cache)
        x = repeats.run("layer", layers._counted, x, run)
    assert layers.ran == 1
    caches.clear()
    del cache, run, x
    ended = _ended(layers.ops.requests)
    assert sorted(ended) == list(range(len(layers.ops.requests.sizes)))


def test_layers_run_each_where_something_else_holds_what_one_made() -> None:
    kept: list[Tensor] = []

    def keeping(x: Tensor, run: LayerRun) -> Tensor:
        kept.append(run.ops.new((4,), FLOAT))
        return run.ops.pointwise(x)

    layers = Layers(keeping)
    layers.run(3)
    assert layers.ran == len(kept) == 3


def _ended(requests: Requests) -> list[int]:
    """Storages that went, in their order; each once, or the list has it twice."""
    return [~event for event in requests.events if event < 0]
