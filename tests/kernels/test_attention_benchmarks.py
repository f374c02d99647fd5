"""The logic of the attention benchmark, on the CPU with tiny shapes and a clock that stands."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks.attention` at tiny shapes, on the CPU; 10 us for everything."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.attention")
    for name, value in {
        "HEADS": 4, "WIDTH": 32, "CHUNK": 5, "TOKENS": (132, 260), "KV_HEADS": (2, 4),
        "BATCHES": (1, 2), "DEVICE": CPU,
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)

    def once(launches: list[Callable[[], Any]]) -> Any:
        for launch in launches:
            launch()
        return importlib.import_module("benchmarks.timing").Timing(10.0, 9.0, 11.0)

    monkeypatch.setattr(module, "time_graph", once)
    monkeypatch.setattr(sys.modules["benchmarks.decode_speed"], "PROFILE", "tiny")
    return module


def test_every_figure_and_target_is_there(bench: ModuleType) -> None:
    found = bench.figures(1e9)
    assert len(found["decode"]) == 2 * 2 * 2
    assert all(row["times_sdpa"] == row["times_expanded"] == 1.0 for row in found["decode"])
    assert [row["tokens"] for row in found["model"]] == [132, 260]
    assert [row["got"] for row in found["targets"]] == [1.0, 1.0, 1.0]
    assert [row["reached"] for row in found["targets"]] == [False, False, True]
    text = bench.tables(found)
    assert text.count("NOT REACHED") == 2
    assert "260, 4, 2" in text


def test_what_does_not_fit_is_left_out_and_said(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = bench.decode(132, 2, 1, 1e9)
    needed = 4 * 1 * 2 * 132 * 32
    monkeypatch.setattr(bench, "fits", lambda asked: asked <= needed)
    left = bench.decode(132, 2, 1, 1e9)
    assert row["left_out"] == []
    assert left["left_out"] == ["sdpa", "sdpa, queries in rows", "expanded"]
    assert left["times_sdpa"] is None
    found = {"decode": [left], "prefill": [], "model": [], "targets": []}
    assert "left out, for memory: sdpa" in bench.tables(found)
    assert not bench.target("anything", 1.0, None)["reached"]


def test_the_three_ways_compute_the_same(bench: ModuleType) -> None:
    """Rows of one head, grouped heads, and an expanded cache against the operator's reference."""
    run = bench.shape(132, 2, 1)  # whole groups and the sinks: no tail
    cache = bench.filled(run)
    layer, q = cache.layers[0], bench.queries(run, 1)[:, :4, None]
    expanded = bench.expand_and_attend(q, layer)
    assert expanded.shape == (1, 4, 1, 32)
    grouped, rows = bench.sdpa_launches(run, grouped=False), bench.sdpa_launches(run, grouped=True)
    for launch, other in zip(grouped, rows, strict=True):
        q, k, v = launch.args
        wanted: Tensor = launch()
        ours = torch.nn.functional.scaled_dot_product_attention(q.view(1, 2, 2, 32), k, v)
        torch.testing.assert_close(ours.flatten(), wanted.flatten(), rtol=0.02, atol=0.02)
        assert other().numel() == wanted.numel()


def test_bytes_of_a_step_are_all_but_the_table(bench: ModuleType) -> None:
    speed = sys.modules["benchmarks.decode_speed"]
    profile = speed.load_profile("tiny")
    run = speed.run_settings(profile, speed.find_gpu("rtx-5080"))
    model = speed.Transformer(run.model, CPU)
    everything = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    table = sum(t.nbytes for t in model.embedding.state_dict().values())
    tied = run.model.tie_word_embeddings
    assert speed.read_bytes(model) == everything - (0 if tied else table)
