"""Module names are those of `named_modules()`, however the model is called."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tritter_mem.simulation.ownership import ModulePath
from tritter_mem.simulation.recorder import Recorder


class Spy(nn.Module):
    """Notes the path that is current while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.path: ModulePath | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.path is not None:
            self.seen.append(self.path.current)
        return x + 1


class Decoder(nn.Module):
    """A model of two layers, which has a method beside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(Spy(), nn.Identity()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(x)

    def decode(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def spies(self) -> list[Spy]:
        return [module for module in self.modules() if isinstance(module, Spy)]


def watch(model: Decoder, path: ModulePath) -> list[Spy]:
    for spy in model.spies():
        spy.path = path
    return model.spies()


def test_forward_of_a_model_made_before_gives_full_names() -> None:
    model = Decoder()
    with ModulePath() as path:
        spies = watch(model, path)
        model(torch.ones(1))
        assert path.current == ""
    assert [spy.seen for spy in spies] == [["Decoder.layers.0.0"], ["Decoder.layers.1.0"]]


def test_method_of_a_model_made_inside_gives_full_names() -> None:
    with ModulePath() as path:
        model = Decoder()
        model.layers.append(nn.Sequential(copy.deepcopy(model.spies()[0])))
        spies = watch(model, path)
        model.decode(torch.ones(1))
    assert [spy.seen for spy in spies] == [[f"Decoder.layers.{i}.0"] for i in range(3)]


def test_lone_module_goes_by_its_class() -> None:
    with ModulePath() as path:
        spy = Spy()
        spy.path = path
        spy(torch.ones(1))
    assert spy.seen == ["Spy"]


def test_error_in_forward_leaves_its_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with ModulePath() as path:
        with pytest.raises(RuntimeError):
            model(torch.ones(3))
        assert path.current == ""


def test_dead_modules_are_forgotten() -> None:
    with ModulePath() as path:
        for _ in range(3):
            nn.Sequential(nn.Identity())(torch.ones(1))
        assert len(path._names) == 0


def test_nothing_is_followed_after_the_end() -> None:
    model = Decoder()
    with ModulePath() as path:
        spies = watch(model, path)
    model(torch.ones(1))
    assert [spy.seen for spy in spies] == [[""], [""]]


def test_events_carry_the_module_also_where_it_recomputes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    with Recorder() as recorder:
        x = torch.ones(2, 4, requires_grad=True)
        y = checkpoint(model, x, use_reentrant=False)
        recorded = len(recorder.log)
        y.sum().backward()
    modules = [event.module for event in recorder.log]
    assert {"Sequential.0", "Sequential.1", "Sequential.2"} <= set(modules[:recorded])
    assert "Sequential.1" in modules[recorded:]
    assert "" not in modules
