"""`tritter-mem report`: files in, tables or one page out, and clear words for anything else."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner
from typer.testing import Result as Done

from tests.report.records import curves, planned_7b, tiny_on_cpu, training_1b
from tritter_mem.cli.main import app
from tritter_mem.config.loading import load_profile
from tritter_mem.errors import EXIT_OK, EXIT_USAGE
from tritter_mem.planner.result import planned_result
from tritter_mem.planner.solve import context_curves
from tritter_mem.report.page import PLOTLY_FILE
from tritter_mem.results.history import VARIABLE, remember
from tritter_mem.results.run import Result


def run(*arguments: str | Path) -> Done:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def write(path: Path, *results: Result) -> Path:
    records = [result.to_dict() for result in results]
    path.write_text(json.dumps(records[0] if len(records) == 1 else records))
    return path


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    return write(tmp_path / "planned.json", planned_7b())


def test_one_result_is_shown_whole_and_does_not_fail_for_not_fitting(planned: Path) -> None:
    done = run(planned)
    assert done.exit_code == EXIT_OK
    assert "does not fit: needs 20.33 GiB (planned)" in done.stdout
    assert "Budget by component" in done.stdout


def test_several_files_and_lists_are_compared_in_their_order(planned: Path) -> None:
    both = write(planned.with_name("both.json"), training_1b(), tiny_on_cpu())
    names = ["1b-training", "tiny", "7b-128k"]
    firsts = [line.split()[0] for line in run(both, planned).stdout.splitlines() if line.strip()]
    assert [first for first in firsts if first in names][:3] == names


def test_units_are_as_asked(planned: Path) -> None:
    assert "the budget of 16.11 GB" in run(planned, "--units", "GB").stdout


def test_json_is_all_records_in_one_list_and_nothing_else(planned: Path) -> None:
    shown = json.loads(run(planned, planned, "--json").stdout)
    assert shown == [json.loads(planned.read_text())] * 2


def test_html_writes_one_page_and_prints_nothing(planned: Path) -> None:
    page = planned.parent / "new" / "page.html"
    done = run(planned, "--html", page)
    assert (done.exit_code, done.output) == (EXIT_OK, "")
    assert page.read_text().startswith("<!doctype html>")
    assert list(page.parent.iterdir()) == [page]


@pytest.mark.parametrize("known", [True, False], ids=["in the record", "planned anew"])
def test_a_record_without_curves_is_drawn_with_them(tmp_path: Path, known: bool) -> None:
    profile = load_profile("tiny")
    curves = context_curves(profile) if known else ()
    made = replace(planned_result(profile), context_curves=curves)
    record, page = write(tmp_path / "tiny.json", made), tmp_path / "tiny.html"
    assert run(record, "--html", page, "--plotlyjs", "cdn").exit_code == EXIT_OK
    assert "Memory against context length" in page.read_text()


def test_the_library_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    drawn = write(tmp_path / "drawn.json", replace(planned_7b(), context_curves=curves("int4")))
    page = tmp_path / "new" / "page.html"
    run(drawn, "--html", page, "--plotlyjs", "directory")
    assert sorted(file.name for file in page.parent.iterdir()) == ["page.html", PLOTLY_FILE]
    run(drawn, "--html", page, "--plotlyjs", "cdn")
    assert "https://cdn.plot.ly/" in page.read_text()


def test_a_page_without_charts_brings_no_library(planned: Path) -> None:
    page = planned.parent / "new" / "page.html"
    run(planned, "--html", page, "--plotlyjs", "directory")
    assert [file.name for file in page.parent.iterdir()] == ["page.html"]


def test_the_problems_of_all_files_are_told_at_once(planned: Path) -> None:
    bad = planned.with_name("bad.json")
    bad.write_text("{}")
    done = run(planned.with_name("none.json"), planned, bad)
    assert done.exit_code == EXIT_USAGE
    assert done.stderr.splitlines() == [
        f"error: {planned.with_name('none.json')}: cannot be read: No such file or directory",
        f"error: {bad}: schema: got None, expected 'tritter-mem.result/1'",
    ]


def test_an_output_that_cannot_be_written_is_an_error(planned: Path) -> None:
    done = run(planned, "--html", planned.parent)
    assert done.exit_code == EXIT_USAGE
    assert "cannot be written: it exists and is not a regular file" in done.stderr


def test_a_page_never_replaces_a_result(planned: Path) -> None:
    before = planned.read_text()
    done = run(planned, "--html", planned)
    assert done.exit_code == EXIT_USAGE
    assert "this command reads it" in done.stderr
    assert planned.read_text() == before


@pytest.mark.parametrize(
    "arguments", [(), ("--units", "MB"), ("--plotlyjs", "here"), ("--html", "x.html", "--json")]
)
def test_wrong_usage_is_told_with_its_exit_code(
    planned: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(planned.parent)
    files = [planned] if arguments else []
    done = run(*files, *arguments)
    assert done.exit_code == EXIT_USAGE
    assert done.stderr
    assert [file.name for file in planned.parent.iterdir()] == ["planned.json"]


def test_help_ends_with_an_example() -> None:
    assert "Example: tritter-mem report tiny.json" in run("--help").stdout


def test_reporting_needs_no_pytorch(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(planned, "--html", planned.with_name("page.html")).exit_code == EXIT_OK


def test_export_writes_the_numbers_and_prints_nothing(planned: Path) -> None:
    file = planned.with_name("numbers.csv")
    done = run(planned, "--export", file)
    assert (done.exit_code, done.output) == (EXIT_OK, "")
    assert file.read_text().startswith("profile,profile_hash,created,torch,kind,gpu,group,name,")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--export", "numbers.xlsx"], "expected a file ending in .csv or .parquet"),
        (["--export", "x.csv", "--html", "x.csv"], "--html and --export both write x.csv"),
        (["--history"], "--history cannot be combined with results"),
    ],
)
def test_options_that_cannot_be_are_explained(
    planned: Path, arguments: list[str], words: str
) -> None:
    done = run(planned, *arguments)
    assert done.exit_code == EXIT_USAGE
    assert words in done.stderr


def test_without_results_there_is_a_history_or_a_word_of_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "missing RESULT" in run().stderr
    assert "`tritter-mem profile` and `check` write it" in run("--history").stderr
    monkeypatch.setenv(VARIABLE, "on")
    remember([planned_7b()])
    assert "7b-128k (planned, rtx-5080)" in run("--history").stdout
    assert json.loads(run("--history", "--json").stdout)[0]["profile"] == "7b-128k"
    page = tmp_path / "history.html"
    assert (run("--history", "--html", page).exit_code, page.exists()) == (EXIT_OK, True)
