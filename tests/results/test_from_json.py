"""Dataclasses survive the way through JSON, and nothing else passes for one."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from tests.report import records
from tritter_mem.models.user_code import ModuleCase
from tritter_mem.results.from_json import WrongDataError, from_plain, line_of
from tritter_mem.results.run import ContextCurve, MemoryUse, Phase, Result, Timeline, Verdict

USES = list(records.training_1b().by_kind().values())


@pytest.mark.parametrize("use", USES, ids=lambda e: e.device)
def test_memory_use_comes_back_equal(use: MemoryUse) -> None:
    assert from_plain(MemoryUse, json.loads(json.dumps(asdict(use)))) == use


def test_whole_record_comes_back_equal() -> None:
    """With its kinds of answer, which are named words."""
    result = records.training_1b()
    assert from_plain(Result, json.loads(json.dumps(result.to_dict()))) == result


def test_word_that_is_none_of_those_allowed_is_refused() -> None:
    data = {"fits": True, "budget_bytes": 1, "headroom_bytes": 0, "basis": "guessed"}
    with pytest.raises(ValueError, match="basis: got 'guessed', expected"):
        from_plain(Verdict, data)


def test_free_arguments_come_back_as_they_are() -> None:
    case = ModuleCase(path="code.py", function="build", arguments={"sizes": [1, {"x": None}]})
    assert from_plain(ModuleCase, json.loads(json.dumps(asdict(case)))) == case


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"^got \[\], expected the fields of Phase"),
        ({"name": "load"}, "allocated_peak_bytes: missing"),
        (
            {"name": "load", "allocated_peak_bytes": "1"},
            "allocated_peak_bytes: got '1', expected a valid integer",
        ),
        ({"name": "load", "allocated_peak_bytes": True}, "allocated_peak_bytes: got True"),
        ({"name": 3, "allocated_peak_bytes": 1}, "name: got 3, expected a valid string"),
        ({"name": "load", "allocated_peak_bytes": 1, "bytes": 1}, "bytes: unknown key"),
    ],
)
def test_wrong_data_says_where(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_plain(Phase, data)


def test_every_problem_is_named_and_a_newer_version_s_keys_may_be_passed_over() -> None:
    data = {"name": 3, "seconds": "x", "bytes": 1, "components": {"weights_bytes": None}}
    with pytest.raises(WrongDataError) as caught:
        from_plain(Phase, data, "phases[2]")
    assert list(map(line_of, caught.value.problems)) == [
        "phases[2].name: got 3, expected a valid string",
        "phases[2].allocated_peak_bytes: missing",
        "phases[2].seconds: got 'x', expected a valid number",
        "phases[2].components.weights_bytes: got None, expected a valid integer",
        "phases[2].bytes: unknown key",
    ]
    newer = {"name": "load", "allocated_peak_bytes": 1, "bytes": 1}
    assert from_plain(Phase, newer, newer=True) == Phase(name="load", allocated_peak_bytes=1)


@pytest.mark.parametrize("rows", [[[1, 10**400]], [[1.0, float("nan")]], [[1, float("inf")]]])
def test_a_row_holds_numbers_that_a_float_holds(rows: list[list[float]]) -> None:
    with pytest.raises(WrongDataError, match=r"^rows\[0\]\[1\]: got .*expected a finite number"):
        from_plain(Timeline, {"columns": ["event", "bytes"], "rows": rows})


def test_points_have_as_many_numbers_as_their_type_says() -> None:
    curve = ContextCurve(
        cache_dtype="int4", kv_heads=8, own=True, points=((1, 2), (3, 4)), largest_context=None
    )
    data = json.loads(json.dumps(asdict(curve)))
    assert from_plain(ContextCurve, data) == curve
    data["points"][1].append(5)
    with pytest.raises(WrongDataError, match=r"points\[1\]: got \[3, 4, 5\], expected 2 items"):
        from_plain(ContextCurve, data)
