"""Every storage belongs to a module: that holds it, that allocated it, or that it is made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.planner.cases import POLICIES, card, tiny
from tritter_mem.config.profile import Profile
from tritter_mem.results.run import MemoryUse
from tritter_mem.simulation.events import Event
from tritter_mem.simulation.peaks import held_at
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.recorder import Recorder
from tritter_mem.simulation.simulate import bundled_workload, simulate, trace
from tritter_mem.simulation.user_module import Categories
from tritter_model.layer import Layer


def events(profile: Profile) -> list[Event]:
    log = trace(bundled_workload(profile, card(), Progress()), card())
    return list(log)


def modules(run: Callable[[], object], device: str = "meta") -> dict[str, set[str]]:
    """The modules of what a run allocates, by operator."""
    with Recorder(device) as recorder:
        run()
    found: dict[str, set[str]] = {}
    for event in recorder.log:
        if event.kind == "alloc":
            found.setdefault(event.operator.split(".")[1], set()).add(event.module)
    return found


def owners(found: list[Event], category: str) -> set[str]:
    return {event.module for event in found if event.category == category}


CASES: list[dict[str, Any]] = [
    {"model__vision": "siglip-base"},
    {"weights__format": "bfloat16", "model__tie_word_embeddings": True},
    *(
        {"workload__mode": "training", "training__checkpointing": {"policy": policy, "n": 2}}
        for policy in POLICIES
    ),
    {"workload__mode": "training", "model__tie_word_embeddings": True},
]


@pytest.mark.parametrize("settings", CASES)
def test_every_event_of_the_bundled_model_has_a_module(settings: dict[str, Any]) -> None:
    found = events(tiny(**settings))
    assert [event for event in found if not event.module.startswith("Transformer.")] == []


def test_weights_caches_and_logits_belong_to_their_layers_and_tables() -> None:
    found = events(tiny(workload__new_tokens=3))
    layers = [f"Transformer.layers.{i}" for i in range(4)]
    assert owners(found, "kv_cache") == {*layers}
    linears = {
        f"{layer}.{name}" for layer in layers for name in ("qkv", "out", "mlp.gate_up", "mlp.down")
    }
    assert owners(found, "weights") >= linears
    assert owners(found, "embeddings") == {"Transformer.embedding", "Transformer.head"}
    assert owners(found, "logits") == {"Transformer.head"}


def test_gradients_and_the_optimizer_s_state_belong_to_the_weights_modules() -> None:
    found = events(tiny(workload__mode="training"))
    holders = owners(found, "weights") | owners(found, "embeddings")
    assert owners(found, "gradients") == holders
    assert owners(found, "optimizer_state") == holders


def test_a_backward_pass_goes_by_the_module_that_made_the_node(device: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).to(device)

    def run() -> None:
        model(torch.ones(2, 4, device=device)).sum().backward()

    found = modules(run, device)
    assert found["tanh_backward"] == {"Sequential.1"}
    assert found["mm"] == {"Sequential.0", "Sequential.2"}
    assert "" not in {name for names in found.values() for name in names}


@pytest.fixture(params=["cpu", "meta"])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_pass_with_recomputation_does_too(reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).to("meta")

    def run() -> None:
        x = torch.ones(2, 4, device="meta", requires_grad=True)
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()

    found = modules(run)
    assert found["tanh_backward"] == {"Sequential.1"}
    assert found["tanh"] == {"Sequential.1"}


def test_each_step_goes_by_its_own_nodes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).to("meta")
    with Recorder("meta") as recorder:
        for _ in range(3):
            model(torch.ones(2, 4, device="meta")).sum().backward()
    found = [event for event in recorder.log if event.operator.startswith("aten.tanh_backward")]
    assert [event.module for event in found] == ["Sequential.1"] * 3


def test_state_of_an_optimizer_over_lists_belongs_parameter_by_parameter() -> None:
    def run() -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to("meta")
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        model(torch.ones(2, 4, device="meta")).sum().backward()
        optimizer.step()

    found = modules(run)
    assert found["_foreach_sqrt"] == {"Sequential.0", "Sequential.1"}
    assert found["zeros_like"] == {"Sequential.0", "Sequential.1"}


def test_a_shared_weight_belongs_to_the_first_that_holds_it() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, 4, device="meta")
            self.head = nn.Linear(4, 8, bias=False, device="meta")
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids))  # type: ignore[no-any-return]

    with Recorder("meta") as recorder:
        model = Tied()
        model(torch.zeros(3, dtype=torch.int64, device="meta"))
        live = held_at(recorder.log, len(recorder.log))
    assert [holding.module for holding in live if holding.allocated_bytes >= 128] == ["Tied.table"]


def test_a_lazy_weight_belongs_to_its_module_once_it_is_there() -> None:
    with Recorder("meta") as recorder, Categories(recorder.adopt) as categories:
        model = nn.Sequential(nn.LazyLinear(3, device="meta"))
        model(torch.ones(2, 4, device="meta"))
        categories.settle()
    found = [e for e in recorder.log if e.kind == "alloc" and e.category == "weights"]
    assert [(e.module, e.bytes) for e in found] == [("Sequential.0", 48), ("Sequential.0", 12)]


def test_what_no_module_uses_belongs_to_none() -> None:
    with Recorder("meta") as recorder:
        model = nn.Linear(4, 4, device="meta")
        unused = torch.ones(3, device="meta")
        model(torch.ones(2, 4, device="meta"))
        del unused
    assert {event.module for event in recorder.log if event.bytes == 12} == {""}
    assert {event.module for event in recorder.log if event.bytes != 12} == {"Linear"}


def held(use: MemoryUse) -> dict[tuple[str, str], int]:
    return {(h.module, h.component): h.allocated_bytes for h in use.held_at_peak}


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_one_more_buffer_in_a_layer_names_that_layer(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    before = held(simulate(tiny(workload__mode=mode)))
    build = Layer.__init__

    def with_buffer(layer: Layer, config: Any, index: int, *args: Any) -> None:
        build(layer, config, index, *args)
        if index == 2:
            device = layer.mlp.norm.weight.device
            layer.mlp.register_buffer("more", torch.zeros(1 << 20, device=device))

    monkeypatch.setattr(Layer, "__init__", with_buffer)
    after = held(simulate(tiny(workload__mode=mode)))
    grown = {place: size - before.get(place, 0) for place, size in after.items()}
    largest = max(grown, key=grown.__getitem__)
    assert largest == ("Transformer.layers.2.mlp", "weights")
    assert grown[largest] == 4 << 20
