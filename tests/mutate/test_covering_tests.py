"""Which tests a change is tried against, and what is kept of earlier tries."""

import json
from pathlib import Path

import pytest
from coverage import CoverageData

from tests.mutate import __main__ as mutate
from tests.mutate.mutants import ROOT, Mutant
from tests.mutate.worker import KILLED

FILE = "tritter_mem/planner/padded.py"
MUTANT = Mutant(file=FILE, index=0, line=5, lines=(5, 6), function="padded", change="0 → 1")


def chosen(seconds: dict[str, float], limit: float) -> list[str]:
    """The tests that are chosen where all of them run the line."""
    data = CoverageData(no_disk=True)
    for name in seconds:
        data.set_context(f"{name}|run")
        data.add_lines({str(ROOT / FILE): [5]})
    data.set_context("")
    data.add_lines({str(ROOT / FILE): [1]})
    return mutate.CoveringTests(data, seconds).of(MUTANT, limit)


def test_the_quickest_come_first() -> None:
    assert chosen({"t::a": 2, "t::b": 1, "t::c": 3}, 100) == ["t::b", "t::a", "t::c"]


def test_after_half_of_the_time_each_function_has_its_turn() -> None:
    """Of 18 seconds 9 go to the quickest, the rest to one of each function while they last."""
    seconds = {"t::a[1]": 3.0, "t::a[2]": 3.0, "t::a[3]": 3.5, "t::a[4]": 3.6, "t::b": 4.0}
    assert chosen(seconds, 18) == ["t::a[1]", "t::a[2]", "t::a[3]", "t::b", "t::a[4]"]
    assert chosen(seconds, 16) == ["t::a[1]", "t::a[2]", "t::a[3]", "t::b"]


def test_one_that_takes_longer_than_what_is_left_is_passed_over() -> None:
    seconds = {"t::a": 1.0, "t::slow": 9.5, "t::b": 6.0}
    assert chosen(seconds, 10) == ["t::a", "t::b"]
    assert chosen({"t::a": 1.0, "t::slow": mutate.LONGEST_TEST}, 1000) == ["t::a", "t::slow"]
    assert chosen({"t::a": 30.0}, 40) == []


def test_what_a_test_noticed_that_is_gone_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutate, "_identity", lambda mutant: mutant.key)
    path = tmp_path / "done.jsonl"
    mutate.Done(path, ["t::a[1]"]).add(MUTANT, {"how": KILLED, "test": "t::a[2]"})
    assert json.loads(path.read_text())["test"] == "t::a[2]"
    assert mutate.Done(path, ["t::a[1]"]).of(MUTANT) == KILLED
    assert mutate.Done(path, ["t::b"]).of(MUTANT) == ""
