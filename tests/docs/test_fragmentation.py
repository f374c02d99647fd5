"""The page on fragmentation has the figures that the simulation gives."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import fragmentation as module
from benchmarks.fragmentation import SETTINGS, run, table
from benchmarks.rows import Refused
from tritter_mem.results.run import Result

PAGE = (Path(__file__).parents[2] / "docs" / "fragmentation.md").read_text()


@pytest.fixture(scope="module")
def results() -> list[Result]:
    found, problems = run("none")
    assert not problems
    return found


def test_the_table_is_the_simulation_s(results: list[Result]) -> None:
    assert "\n".join(table(results, "simulated")) in PAGE


def test_expandable_segments_cure_what_the_default_wastes(results: list[Result]) -> None:
    by_setting = {conf: result.simulated for conf, result in zip(SETTINGS, results, strict=True)}
    default, expandable = by_setting[""], by_setting["expandable_segments:True"]
    assert default is not None
    assert expandable is not None
    assert default.allocated_peak_bytes == expandable.allocated_peak_bytes
    assert default.fragmentation is not None
    assert expandable.fragmentation is not None
    assert default.fragmentation.ratio > 0.3
    assert expandable.fragmentation.ratio < 0.05


def test_a_setting_whose_peak_was_not_recorded_fails(
    results: list[Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = results[0].simulated
    assert simulated is not None
    whole = replace(results[0], measured=simulated)
    monkeypatch.setattr(module, "result_of", lambda *_: whole)
    assert module.measured("")["measured"]["fragmentation"] is not None
    without = replace(whole, measured=replace(simulated, fragmentation=None))
    monkeypatch.setattr(module, "result_of", lambda *_: without)
    with pytest.raises(Refused, match="not recorded") as refused:
        module.measured("")
    assert refused.value.figures["measured"]["allocated_peak_bytes"] > 0


def test_what_was_not_measured_has_no_figure(results: list[Result]) -> None:
    assert not any(re.search(r"\d MiB", line) for line in table(results, "measured"))
