"""Probes: what is read around a call, and how readings become a card's entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from benchmarks.probes import change, entry_of, lines
from tests.measure.simulated_gpu import SimulatedGpu
from tritter_mem.config.bundled_files import profiles_root
from tritter_mem.config.cards import CardFile, card_names
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import MeasureError
from tritter_mem.evidence.probes import (
    CONTEXT,
    CUBLAS,
    OPERATORS,
    Beyond,
    ProbeReading,
    beyond,
    difference,
    pages,
    probe,
    source_of,
    updated,
    with_key,
)
from tritter_mem.simulation.cuda.scratch import peak_bytes, scratch_bytes
from tritter_mem.units import GiB, MiB

SOURCE = source_of("2.11.0", "580.82.07", "2026-01-05")
READINGS = (
    ProbeReading(name=CONTEXT, measured_bytes=530 * MiB + 1),
    ProbeReading(name=CUBLAS, measured_bytes=33_554_432),
)
H100 = (profiles_root() / "gpus" / "h100.yaml").read_text()


def around(call: Callable[[list[Tensor]], object]) -> Beyond:
    """What is read around a call on a simulated GPU; the call may keep tensors in a list."""
    kept: list[Tensor] = []
    with SimulatedGpu(GiB) as gpu:
        return beyond(gpu, lambda: call(kept))


def scratch_and_output(kept: list[Tensor]) -> Tensor:
    output = torch.empty(3 * MiB, dtype=torch.uint8)
    torch.empty(2 * MiB, dtype=torch.uint8)
    return output


def test_what_a_call_returns_is_not_beyond_it() -> None:
    assert around(scratch_and_output) == (2 * MiB, 0)
    assert around(lambda kept: torch.empty(700, dtype=torch.uint8)) == (0, 0)


def test_what_a_call_leaves_behind_is_kept() -> None:
    def library(kept: list[Tensor]) -> Tensor:
        kept.append(torch.empty(8_519_680, dtype=torch.uint8))
        return torch.empty(512, dtype=torch.uint8)

    assert around(library) == (8_519_680, 8_519_680)


def test_two_views_of_a_storage_count_once() -> None:
    def views(kept: list[Tensor]) -> tuple[Tensor, Tensor, int]:
        whole = torch.empty(MiB, dtype=torch.uint8)
        return whole[:100], whole[100:], 3

    assert around(views) == (0, 0)


def test_pages_are_what_a_small_and_a_large_request_reserve() -> None:
    with SimulatedGpu(GiB) as gpu:
        assert [reading.measured_bytes for reading in pages(gpu)] == [2 * MiB, 20 * MiB]


def test_probes_of_inner_scratch_suit_their_operators() -> None:
    """On `meta` each probe's arguments suit its operator, and its rule gives bytes for them."""
    for make in OPERATORS.values():
        operator, args = make("meta")
        assert peak_bytes(scratch_bytes(find_gpu("h100"), str(operator), args, {})) > 0, operator
        operator(*args)


def test_measured_replaces_assumed_and_everything_else_stays() -> None:
    after = updated(H100, READINGS, SOURCE)
    before, found = yaml.safe_load(H100), yaml.safe_load(after)
    changed = {"context_mib", "context_source", "cublas_workspace_bytes", "cublas_source"}
    assert {k: v for k, v in found.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    card = CardFile.model_validate(found).card("h100")
    assert card.context_bytes == 531 * MiB  # rounded up to what the entry counts in
    assert card.context_measured
    assert card.context_source == card.cublas_source == SOURCE
    assert card.cublas_workspace_bytes == 33_554_432
    assert updated(after, READINGS, SOURCE) == after


@pytest.mark.parametrize("name", card_names())
def test_every_card_s_entry_takes_readings(name: str) -> None:
    entry = (profiles_root() / "gpus" / f"{name}.yaml").read_text()
    CardFile.model_validate(yaml.safe_load(updated(entry, READINGS, SOURCE)))


def test_comments_and_order_stay() -> None:
    text = "# A card.\na: 1  # one\nb: >-\n  two\n  lines\n# Last.\nc: 3\n"
    assert with_key(text, "b", "4") == "# A card.\na: 1  # one\nb: 4\n# Last.\nc: 3\n"
    assert with_key(text, "d", "5") == f"{text}d: 5\n"


def test_what_could_not_be_read_stays_as_it_is() -> None:
    unread = ProbeReading(name=CONTEXT, measured_bytes=None)
    after = updated(H100, (unread, READINGS[1]), SOURCE)
    assert "assumed, not measured" in after
    assert "cublas_workspace_bytes: 33554432" in after
    with pytest.raises(MeasureError, match="could be read"):
        updated(H100, (unread,), SOURCE)


def test_a_measured_workspace_is_what_is_planned_and_simulated() -> None:
    from tritter_mem.config.loading import load_profile
    from tritter_mem.planner.compose import plan
    from tritter_mem.simulation.simulate import simulate

    tiny = load_profile("tiny", {"model.num_hidden_layers": 1, "workload.context": 48,
                                 "workload.new_tokens": 2})  # fmt: skip
    card = replace(find_gpu("h100"), measured_cublas_bytes=5 * MiB)
    assert plan(tiny, card).library_workspace_bytes == 5 * MiB
    assert simulate(tiny, card=card).library_workspace_bytes == 5 * MiB
    assert plan(tiny, find_gpu("h100")).library_workspace_bytes == 33_554_432


def test_a_dry_run_shows_the_change_and_makes_none(tmp_path: Path) -> None:
    path = tmp_path / "h100.yaml"
    path.write_text(H100)
    shown = change(path, READINGS, write=False)
    assert "-context_mib: 812\n+context_mib: 531\n" in shown
    assert path.read_text() == H100
    assert change(path, READINGS, write=True) == shown
    assert "context_mib: 531" in path.read_text()
    assert difference(H100, H100, "h100.yaml") == ""


def test_a_card_that_the_table_lacks_is_named() -> None:
    assert entry_of(find_gpu("h100"), Path("x")) == Path("x/h100.yaml")
    with pytest.raises(MeasureError, match="has no NVIDIA Nonesuch"):
        entry_of(replace(find_gpu("h100"), title="NVIDIA Nonesuch"), Path("x"))


def test_the_table_says_where_a_reading_is_not_what_is_assumed() -> None:
    readings = [
        ProbeReading(name="a", measured_bytes=512, assumed_bytes=512),
        ProbeReading(name="b", measured_bytes=1024, assumed_bytes=512),
        ProbeReading(name="c", measured_bytes=None, assumed_bytes=512),
        ProbeReading(name="d", measured_bytes=7),
    ]
    assert ["differs" in line for line in lines(readings)] == [False, False, True, False, False]


@pytest.mark.gpu
def test_probes_on_a_gpu_read_every_figure() -> None:
    from tritter_mem.measure.target import MeasureOptions, locate

    card = locate(MeasureOptions(device="cuda")).card
    assert card is not None
    found = {reading.name: reading for reading in probe(card)}
    assert found[CUBLAS].measured_bytes == found[CUBLAS].assumed_bytes
    assert found["cuBLAS workspace, second product"].measured_bytes == 0
    assert set(OPERATORS) <= set(found)
