"""The logic of the attention benchmark, on the CPU with tiny shapes and times that are given."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import attention as bench
from benchmarks.card import Card, standing_for
from benchmarks.timing import Timing


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiny shapes, on the CPU; 10 us for everything, and a copy of 1 GB/s."""
    for name, value in {
        "HEADS": 4, "WIDTH": 32, "CHUNK": 5, "TOKENS": (260, 132), "KV_HEADS": (2, 4),
        "BATCHES": (1, 2),
    }.items():  # fmt: skip
        monkeypatch.setattr(bench, name, value)

    def once(launches: list[Callable[[], Any]]) -> Timing:
        for launch in launches:
            launch()
        return Timing(10.0, 9.0, 11.0)

    monkeypatch.setattr(bench, "time_graph", once)
    monkeypatch.setattr("benchmarks.timing.copy_bytes_per_second", lambda: 1e9)
    with standing_for(Card("CPU", 0, 4, 1, device="cpu")):
        yield


def test_every_figure_and_target_is_there() -> None:
    rows = list(bench.rows(Path("unused")))
    found = {row.name: row.take() for row in rows}
    decoded = [figures for name, figures in found.items() if name.startswith("decode")]
    assert len(decoded) == 2 * 2 * 2
    assert all(row["times_sdpa"] == row["times_expanded"] == 1.0 for row in decoded)
    assert (
        [name for name, figures in found.items() if "target" in figures]
        == [
            "decode, 260 tokens, 2 KV heads, batch 1",
            "decode, 260 tokens, 4 KV heads, batch 1",
            "chunk behind 260 tokens",
        ]
        == [row.name for row in rows[:3]]
    )
    targets = [figures["target"] for figures in found.values() if "target" in figures]
    assert [(target["got"], target["reached"]) for target in targets] == [
        (1.0, False), (1.0, False), (1.0, True),
    ]  # fmt: skip


def test_bytes_are_compared_with_a_copy_s() -> None:
    run = bench.shape(132, 2, 1)
    share = bench.decode(132, 2, 1)["share_of_copy_rate"]
    assert share == round(bench.KVCache(run, bench.META).nbytes / 1e9 / 10e-6, 3)


def test_what_does_not_fit_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "fits", lambda asked: asked <= 4 * 1 * 2 * 260 * 32)
    left = bench.decode(260, 2, 1)
    assert left["left_out"] == ["sdpa", "sdpa, queries in rows", "expanded"]
    assert "times_sdpa" not in left
    assert left["target"]["got"] is None
    assert not left["target"]["reached"]
    assert left["share_of_copy_rate"] > 0


def test_the_three_ways_compute_the_same() -> None:
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
