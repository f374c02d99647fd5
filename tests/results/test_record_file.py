"""Files of records: read whole, or refused with every problem named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.records import curves, planned_7b, tiny_on_cpu, training_1b
from tritter_mem.errors import InputError
from tritter_mem.results import from_json
from tritter_mem.results.record_file import read_results
from tritter_mem.results.run import COMPONENTS, Result


def write(folder: Path, content: Any) -> Path:
    path = folder / "result.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_results(path)
    found = [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]
    assert found != list(caught.value.problems), "every problem names the file"
    return found


@pytest.mark.parametrize(
    "result", [planned_7b(), tiny_on_cpu(), training_1b()], ids=lambda r: r.name
)
def test_a_written_record_reads_back_equal(tmp_path: Path, result: Result) -> None:
    assert read_results(write(tmp_path, result.to_dict())) == [result]


def test_a_list_of_records_reads_back_in_order(tmp_path: Path) -> None:
    results = [training_1b(), planned_7b()]
    assert read_results(write(tmp_path, [r.to_dict() for r in results])) == results


def test_all_problems_of_a_record_are_named_with_their_keys(tmp_path: Path) -> None:
    record = planned_7b().to_dict()
    record["planned"]["components"]["weights_bytes"] = "12"
    record["planned"]["phases"][1]["seconds"] = [1]
    record["verdict"]["basis"] = "guessed"
    del record["environment"]
    assert problems(write(tmp_path, record)) == [
        "environment: missing",
        "planned.components.weights_bytes: got '12', expected a valid integer",
        "planned.phases[1].seconds: got [1], expected a valid number",
        "verdict.basis: got 'guessed', expected 'planned', 'simulated', 'rehearsed' or 'measured'",
    ]


def test_problems_in_a_list_say_which_record(tmp_path: Path) -> None:
    good, bad = planned_7b().to_dict(), planned_7b().to_dict()
    bad["created"] = 3
    path = write(tmp_path, [good, bad])
    assert problems(path) == ["[1].created: got 3, expected a valid string"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no JSON: Expecting value"),
        (b"\x89PNG\r\n\x1a\n", "no JSON: 'utf-8' codec can't decode byte 0x89"),
        (b'{"a": NaN}', "no JSON: got NaN, expected a finite number"),
        (b"[" * 10_000, "no JSON: nested too deeply"),
        (b'{"schema": "\\ud800"}', "no JSON: 'utf-8' codec can't encode character"),
        ([], "an empty list; expected records of tritter-mem.result/1"),
        (7, "got a number, expected a record of tritter-mem.result/1"),
        ([None], "[0]: got null, expected a record of tritter-mem.result/1"),
        ({}, "schema: got None, expected 'tritter-mem.result/1'"),
        ({"schema": "tritter-mem.replay/1"}, "schema: got 'tritter-mem.replay/1', expected"),
    ],
)
def test_what_is_no_result_is_said_to_be_none(tmp_path: Path, content: Any, problem: str) -> None:
    found = problems(write(tmp_path, content))
    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    ("value", "allowed"), [(-1, False), (0, True), (1 << 62, True), ((1 << 62) + 1, False)]
)
def test_memory_is_neither_negative_nor_absurd(tmp_path: Path, value: int, allowed: bool) -> None:
    record = planned_7b().to_dict()
    record["planned"]["context_bytes"] = value
    path = write(tmp_path, record)
    if allowed:
        assert read_results(path)[0].planned.context_bytes == value  # type: ignore[union-attr]
    else:
        assert problems(path)[0].startswith(f"planned.context_bytes: got {value}, expected 0 to")


def test_what_is_left_of_a_budget_may_be_negative(tmp_path: Path) -> None:
    record = planned_7b().to_dict()
    assert record["verdict"]["headroom_bytes"] < 0
    assert read_results(write(tmp_path, record))


def test_ragged_timelines_and_infinite_numbers_are_refused(tmp_path: Path) -> None:
    record = json.loads(json.dumps(training_1b().to_dict()))
    record["measured"]["timeline"]["rows"][3] = [1, 2]
    record["profile"]["odd"] = float("inf")
    path = write(tmp_path, json.dumps(record).replace("Infinity", "1e999").encode())
    assert problems(path) == [
        "profile.odd: got inf, expected a finite number",
        "measured.timeline.rows[3]: got 2 numbers, expected 11",
    ]


def test_unknown_components_are_refused(tmp_path: Path) -> None:
    record = json.loads(json.dumps(training_1b().to_dict()))
    record["simulated"]["segments"][0]["blocks"][0]["component"] = "odd"
    record["simulated"]["held_at_peak"][1]["component"] = "total"
    path = write(tmp_path, record)
    where = ["simulated.held_at_peak[1].component", "simulated.segments[0].blocks[0].component"]
    expected = f"expected one of {', '.join(COMPONENTS)}"
    assert problems(path) == [
        f"{where[0]}: got total, {expected}",
        f"{where[1]}: got odd, {expected}",
    ]


def test_curves_have_the_same_rising_contexts_and_memory_that_can_be(tmp_path: Path) -> None:
    record = replace(planned_7b(), context_curves=curves("int4", "int2")).to_dict()
    assert read_results(write(tmp_path, record))
    first, second = (curve["points"] for curve in json.loads(json.dumps(record))["context_curves"])
    for odd in ([], second[::-1], second[:2], [[0, 1], *second[1:]], [[4096, -1], *second[1:]]):
        record["context_curves"][0]["points"] = first
        record["context_curves"][1]["points"] = odd
        assert problems(write(tmp_path, record)) == [
            "context_curves[1].points: expected ascending contexts in tokens, the same in every "
            "curve, each with its bytes"
        ]


def test_a_flood_of_problems_is_cut(tmp_path: Path) -> None:
    record = training_1b().to_dict()
    record["measured"]["timeline"]["rows"] = [["x"]] * 500
    found = problems(write(tmp_path, record))
    assert len(found) == from_json.MAX_PROBLEMS + 1
    assert found[-1] == "and 480 more problems"


def test_a_file_that_is_missing_or_a_folder_is_said_to_be(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.json") == ["cannot be read: No such file or directory"]
    assert problems(tmp_path) == ["cannot be read: Is a directory"]


def test_a_file_beyond_the_limit_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_json, "MAX_FILE_BYTES", 1 << 20)
    assert problems(write(tmp_path, b"x" * ((1 << 20) + 1))) == [
        "too large; a result file has at most 1.0 MiB"
    ]


def test_an_endless_file_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_json, "MAX_FILE_BYTES", 1 << 20)
    assert problems(Path("/dev/zero")) == ["too large; a result file has at most 1.0 MiB"]
