"""A rehearsed run stands beside the measured one, and is never called measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.records import planned_7b, training_1b
from tritter_mem.report.html import render_html
from tritter_mem.report.tables import budget_table, measured_table
from tritter_mem.report.validation_report import remarks, validation_table
from tritter_mem.report.words import notes, verdict_of
from tritter_mem.results.record_file import read_results
from tritter_mem.results.run import KINDS, Environment, MemoryUse, Result
from tritter_mem.results.validation import Validated, Validation
from tritter_mem.results.verdict import compare, judge
from tritter_mem.results.writing import write_text_atomically
from tritter_mem.units import GiB


@pytest.fixture
def rehearsed() -> Result:
    """What was measured, as a rehearsal of the same peaks."""
    whole = training_1b()
    found = replace(whole, rehearsed=whole.measured, measured=None, measured_reason="stand-ins")
    kinds = found.by_kind()
    return replace(found, verdict=judge(kinds, 80 * GiB), differences=compare(kinds))


def rehearsal(result: Result) -> MemoryUse:
    assert result.rehearsed is not None
    return result.rehearsed


def test_the_verdict_follows_the_best_kind_that_is_there(rehearsed: Result) -> None:
    assert KINDS == ("planned", "simulated", "rehearsed", "measured")
    assert rehearsed.verdict is not None
    assert rehearsed.verdict.basis == "rehearsed"
    assert "(rehearsed)" in verdict_of(rehearsed, "GiB")
    both = judge(rehearsed.by_kind() | {"measured": rehearsal(rehearsed)}, 80 * GiB)
    assert both is not None
    assert both.basis == "measured"


def test_differences_have_the_rehearsed_bytes_and_nothing_measured(rehearsed: Result) -> None:
    row = next(d for d in rehearsed.differences if d.name == "allocated_peak")
    assert row.rehearsed_bytes == rehearsal(rehearsed).allocated_peak_bytes
    assert row.simulated_vs_rehearsed is not None
    assert (row.measured_bytes, row.simulated_vs_measured) == (None, None)


def test_tables_have_its_column_only_where_a_record_has_it(rehearsed: Result) -> None:
    labels = [column.label for column in budget_table(rehearsed, "GiB").columns]
    assert "Rehearsed" in labels
    assert "Measured" not in labels
    assert "Rehearsed" not in [c.label for c in budget_table(training_1b(), "GiB").columns]
    found = measured_table(rehearsed, "GiB")
    assert found is None or found.caption.startswith("Rehearsed on")
    assert "not measured: stand-ins" in notes(rehearsed)
    assert "Rehearsed" in render_html([rehearsed])
    assert "Rehearsed" not in render_html([planned_7b()])


def test_a_record_from_before_there_were_rehearsals_is_read(
    rehearsed: Result, tmp_path: Path
) -> None:
    path, record = tmp_path / "old.json", training_1b().to_dict()
    for key in ("rehearsed", "rehearsed_reason"):
        del record[key]
    for row in record["differences"]:
        for key in [key for key in row if "rehearsed" in key]:
            del row[key]
    write_text_atomically(path, json.dumps(record))
    assert read_results(path) == [training_1b()]
    write_text_atomically(path, json.dumps(rehearsed.to_dict()))
    assert read_results(path) == [rehearsed]


def test_a_validation_over_stand_ins_compares_with_what_was_rehearsed(rehearsed: Result) -> None:
    case = Validated(name="1b", key="0" * 16, result=rehearsed)
    assert case.status in ("within", "beyond")
    assert {pair for _, pair, _ in case.errors()} == {
        ("planned", "rehearsed"), ("simulated", "rehearsed"),
    }  # fmt: skip
    whole = Validation(
        created="", tool_version="0", device="Stand-in", cases=(case,),
        environment=Environment(python="3.12"),
    )  # fmt: skip
    labels = [column.label for column in validation_table(whole, "GiB").columns]
    assert labels[1:4] == ["Planned", "Simulated", "Rehearsed"]
    assert "planned_vs_rehearsed" in whole.to_dict()["tolerances"]
    assert not any("measured against" in text for text, _ in remarks(whole, "GiB"))
