"""A validation in the terminal, and its finished cases on disk."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.results.test_validation import REFUSED, validated, validation
from tritter_mem.errors import OutputError
from tritter_mem.evidence.validate import CaseFiles, folder_of
from tritter_mem.report.terminal import make_console
from tritter_mem.report.validation_report import render_validation
from tritter_mem.report.words import MISSING
from tritter_mem.results.validation import LeftOut, Validation
from tritter_mem.units import GiB

KEY = "0123456789abcdef"


def drawn(shown: Validation, columns: int = 80) -> list[str]:
    console = make_console(io.StringIO())
    console.width = columns
    render_validation(shown, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_each_case_has_a_row_of_allocated_and_one_of_reserved() -> None:
    lines = drawn(validation(validated(measured=GiB + GiB // 512)))
    headings = "Case Planned Simulated Measured vs planned vs simulated"
    assert lines[2].split() == headings.split()
    assert lines[4].split() == ["tiny-int4", *["1.00", "GiB"] * 3, "+0.2%", "+0.2%"]
    assert lines[5].split() == ["reserved", MISSING, *["2.00", "GiB"] * 2, "equal"]
    assert lines[-1].startswith("1 of 1 within the tolerances")
    assert max(map(len, lines)) <= 80


def test_what_is_beyond_is_said_with_its_tolerance() -> None:
    text = "\n".join(drawn(validation(validated(measured=GiB + GiB // 100)), 200))
    assert "tiny-int4: Allocated peak, measured against simulated: +1.0%, beyond 0.5%" in text
    assert "0 of 1 within" in text


def test_out_of_memory_and_what_was_not_measured_are_told() -> None:
    case = validated(name="7b")
    assert case.result is not None
    assert case.result.measured is not None
    full = replace(case.result.measured, out_of_memory=REFUSED)
    cases = (
        replace(case, result=replace(case.result, measured=full)),
        validated(name="3b", problem="the run was killed by SIGKILL"),
        validated(name="1b", measured=None),
    )
    text = "\n".join(drawn(validation(*cases), 200))
    assert "7b: out of memory in prefill: 1.0 MiB refused at a limit of 1.00 GiB" in text
    assert "3b: not measured: the run was killed by SIGKILL" in text
    assert "1b: not measured: " in text


def test_what_was_kept_left_out_or_interrupted_is_told() -> None:
    left = LeftOut(name="3b-training", needs_bytes=40 * GiB, budget_bytes=15 * GiB)
    shown = validation(validated(kept=True), left_out=(left,), interrupted=True)
    text = "\n".join(drawn(shown, 200))
    assert "3b-training: skipped: needs 40.00 GiB of 15.00 GiB" in text
    assert "1 kept from an earlier run" in text
    assert "interrupted" in text


def test_a_name_from_a_file_steers_no_terminal() -> None:
    text = "\n".join(drawn(validation(validated(name="a\x1b[2Jb", problem="c\x1b[2Jd"))))
    assert "\x1b[2J" not in text


def test_finished_case_is_found_by_its_key_alone(tmp_path: Path) -> None:
    files, case = CaseFiles(tmp_path / "deep"), validated()
    files.write(case)
    assert files.read("tiny-int4", KEY) == case.result
    assert files.read("tiny-int4", "f" * 16) is None
    assert files.read("tiny", KEY) is None


def test_new_conditions_replace_a_case_and_no_other(tmp_path: Path) -> None:
    files = CaseFiles(tmp_path)
    for name in ("tiny", "tiny-int4", "tiny-int4-0000000000000000"):
        files.write(validated(name=name))
    files.write(replace(validated(name="tiny"), key="f" * 16))
    assert sorted(path.name for path in (tmp_path / "cases").iterdir()) == [
        f"tiny-{'f' * 16}.json",
        f"tiny-int4-0000000000000000-{KEY}.json",
        f"tiny-int4-{KEY}.json",
    ]


@pytest.mark.parametrize("case", [validated(measured=None), validated(problem="killed")])
def test_what_was_not_measured_is_not_kept(tmp_path: Path, case: object) -> None:
    CaseFiles(tmp_path).write(case)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_no_finished_case(tmp_path: Path) -> None:
    files = CaseFiles(tmp_path)
    files.write(validated())
    (path,) = (tmp_path / "cases").iterdir()
    path.write_text(path.read_text()[:100])
    assert files.read("tiny-int4", KEY) is None


def test_document_is_written_whole(tmp_path: Path) -> None:
    shown = validation(validated())
    CaseFiles(tmp_path).write_document(shown)
    assert json.loads((tmp_path / "validation.json").read_text()) == shown.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["validation.json"]


def test_a_folder_that_takes_no_files_is_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        CaseFiles(tmp_path / "file")


def test_default_folder_is_the_card_s() -> None:
    assert folder_of("NVIDIA H100 80GB HBM3") == Path("reports/nvidia-h100-80gb-hbm3")
