"""The page on fragmentation has the figures that the simulation gives."""

import re
from pathlib import Path

import pytest

from benchmarks.fragmentation import SETTINGS, run, table
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


def test_what_was_not_measured_has_no_figure(results: list[Result]) -> None:
    assert not any(re.search(r"\d MiB", line) for line in table(results, "measured"))
