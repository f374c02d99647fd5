"""Results as CSV and parquet: the record's own numbers, one a row, and nothing half-written."""

import importlib.util
import io
from pathlib import Path

import pandas as pd
import pytest

from tests.report.records import HOSTILE_NAMES, hostile, planned_7b, training_1b
from tritter_mem.errors import OutputError, UsageError
from tritter_mem.report.export import COLUMNS, export, spreadsheet_text, to_frame


def test_components_sum_to_each_kinds_allocated_peak() -> None:
    results = [training_1b(), planned_7b()]
    frame = to_frame(results)
    assert tuple(frame.columns) == COLUMNS
    assert frame["bytes"].dtype == "int64"
    parts = frame[frame.group == "component"].groupby(["profile", "kind"])["bytes"].sum()
    for result in results:
        for kind, use in result.by_kind().items():
            assert parts[result.name, kind] == use.allocated_peak_bytes


def test_phases_and_cards_are_there() -> None:
    frame = to_frame([training_1b()])
    backward = frame[(frame.group == "phase allocated") & (frame.name == "backward")]
    assert list(backward.kind) == ["planned", "simulated", "measured"]
    assert list(backward.gpu) == ["rtx-5080", "rtx-5080", "NVIDIA H100 80GB HBM3"]


def test_csv_reads_back_the_same(tmp_path: Path) -> None:
    export(tmp_path / "numbers.csv", [training_1b(), planned_7b()])
    found = pd.read_csv(tmp_path / "numbers.csv")
    frame = to_frame([training_1b(), planned_7b()])
    assert found["bytes"].tolist() == frame["bytes"].tolist()
    assert found["name"].tolist() == frame["name"].tolist()


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "=1+1", "@cmd", '"a",b\nc'])
def test_names_are_one_cell_and_no_formula(name: str, tmp_path: Path) -> None:
    export(tmp_path / "numbers.csv", [hostile(name)])
    text = (tmp_path / "numbers.csv").read_text()
    frame = pd.read_csv(io.StringIO(text))
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == len(to_frame([hostile(name)]))
    assert not frame.profile.astype(str).str.startswith(("=", "+", "-", "@")).any()


def test_parquet_reads_back_the_same(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet is an extra: pyarrow is not installed")
    export(tmp_path / "numbers.parquet", [training_1b()])
    found = pd.read_parquet(tmp_path / "numbers.parquet")
    pd.testing.assert_frame_equal(found, to_frame([training_1b()]), check_dtype=False)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name)
    )
    with pytest.raises(OutputError, match=r"pip install 'tritter-mem\[parquet\]'"):
        export(tmp_path / "numbers.parquet", [training_1b()])
    assert not list(tmp_path.iterdir())


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a file ending in \.csv or \.parquet"):
        export(tmp_path / "numbers.xlsx", [training_1b()])


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
@pytest.mark.parametrize("before", ["", " ", "\xa0", "\u3000 ", "   "])
def test_a_formula_in_any_disguise_is_text(before: str, begin: str) -> None:
    text = f"{before}{begin}1+1"
    assert spreadsheet_text(text) == f"'{text}"


def test_what_is_no_formula_is_as_it_is() -> None:
    assert spreadsheet_text("7b = 8b") == "7b = 8b"
