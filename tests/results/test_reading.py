"""Dataclasses survive the way through JSON, and nothing else passes for one."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from tests.report import records
from tritter_mem.models.user_code import ModuleCase
from tritter_mem.results.reading import from_plain
from tritter_mem.results.run import Estimate, Phase, Result, Verdict

ESTIMATES = list(records.training_1b().estimates().values())


@pytest.mark.parametrize("estimate", ESTIMATES, ids=lambda e: e.device)
def test_estimate_comes_back_equal(estimate: Estimate) -> None:
    assert from_plain(Estimate, json.loads(json.dumps(asdict(estimate)))) == estimate


def test_whole_record_comes_back_equal() -> None:
    """With its kinds of answer, which are named words."""
    result = records.training_1b()
    assert from_plain(Result, json.loads(json.dumps(result.to_dict()))) == result


def test_word_that_is_none_of_those_allowed_is_refused() -> None:
    data = {"fits": True, "budget_bytes": 1, "headroom_bytes": 0, "basis": "guessed"}
    with pytest.raises(ValueError, match="basis: found 'guessed', expected"):
        from_plain(Verdict, data)


def test_free_arguments_come_back_as_they_are() -> None:
    case = ModuleCase(path="code.py", function="build", arguments={"sizes": [1, {"x": None}]})
    assert from_plain(ModuleCase, json.loads(json.dumps(asdict(case)))) == case


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"it: found \[\], expected the fields of Phase"),
        ({"name": "load"}, "missing or unknown in Phase: allocated_peak_bytes"),
        (
            {"name": "load", "allocated_peak_bytes": "1"},
            "allocated_peak_bytes: found '1', exp.*int",
        ),
        ({"name": "load", "allocated_peak_bytes": True}, "allocated_peak_bytes: found True"),
        ({"name": 3, "allocated_peak_bytes": 1}, "name: found 3, expected str"),
        ({"name": "load", "allocated_peak_bytes": 1, "bytes": 1}, "unknown in Phase: bytes"),
    ],
)
def test_wrong_data_says_where(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_plain(Phase, data)
