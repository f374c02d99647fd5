"""No command writes over what it reads, waits for a pipe that nobody writes, or loses an entry."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.allocator.build import fragmented_snapshot
from tests.check.build import entry
from tests.report.records import training_1b
from tritter_mem.check.baseline_file import read_baseline, write_baseline
from tritter_mem.cli.check import Ask
from tritter_mem.cli.main import app
from tritter_mem.errors import EXIT_USAGE
from tritter_mem.evidence.validate import CaseFiles
from tritter_mem.results.baseline import Baseline
from tritter_mem.results.validation import Validated
from tritter_mem.text import printable

KEY = "0123456789abcdef"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.fixture
def inputs(folder: Path) -> dict[str, Path]:
    """A file of each sort that commands read."""
    texts = {
        "base.yaml": "extends: tiny\n",
        "mine.yaml": "extends: base.yaml\n",
        "code.py": "def build(device):\n    return lambda: None\n",
        "result.json": json.dumps(training_1b().to_dict()),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    fragmented_snapshot(folder / "snapshot.pickle")
    return {path.name: path for path in folder.iterdir()}


PROFILE = ["profile", "--config", "mine.yaml"]
OVER = [
    ([*PROFILE, "--output", "mine.yaml"], "mine.yaml"),
    ([*PROFILE, "--html", "mine.yaml"], "mine.yaml"),
    ([*PROFILE, "--trace", "mine.yaml"], "mine.yaml"),
    ([*PROFILE, "--snapshot", "mine.yaml"], "mine.yaml"),
    ([*PROFILE, "--output", "base.yaml"], "base.yaml"),  # what it extends is read too
    (["profile", "--module", "code.py:build", "--output", "code.py"], "code.py"),
    (["profile", "--module", "code.py:build", "--html", "./code.py"], "code.py"),
    (["replay", "snapshot.pickle", "--html", "snapshot.pickle"], "snapshot.pickle"),
    (["report", "result.json", "--html", "result.json"], "result.json"),
    (["report", "result.json", "--export", "result.csv"], "result.csv"),
    (["validate", "--config", "mine.yaml", "--device", "cpu", "--html", "mine.yaml"], "mine.yaml"),
    (["check", "--update-baseline", "--config", "mine.yaml", "--baseline", "mine.yaml"],
     "mine.yaml"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "over"), OVER)
def test_no_output_is_written_over_an_input(
    inputs: dict[str, Path], arguments: list[str], over: str
) -> None:
    if over == "result.csv":
        (inputs["result.json"].parent / over).symlink_to("result.json")
    before = {name: path.read_bytes() for name, path in inputs.items()}
    done = run(*arguments)
    assert done.exit_code == EXIT_USAGE, done.output
    assert {name: path.read_bytes() for name, path in inputs.items()} == before
    assert over in done.stderr


def test_the_summary_of_github_is_not_added_to_an_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_baseline(folder / "baseline.json", Baseline(entries=(entry(),)))
    (folder / "result.json").write_text(text := json.dumps(training_1b().to_dict()))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "result.json")
    done = run("check", "--baseline", "baseline.json", "--results", "result.json",
               "--format", "github")  # fmt: skip
    assert done.exit_code == EXIT_USAGE
    assert "this command reads it" in done.stderr
    assert (folder / "result.json").read_text() == text


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--config", "pipe"],
        ["plan", "pipe"],
        ["report", "pipe"],
        ["replay", "pipe"],
        ["check", "--baseline", "pipe"],
        ["audit", "--measured", "pipe"],
        ["profile", "--module", "pipe:build"],
        ["plan", "--config", "extends.yaml"],
    ],
)
def test_a_pipe_that_nobody_writes_to_ends_at_once(folder: Path, arguments: list[str]) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "extends.yaml").write_text("extends: ./pipe\n")
    done = run(*arguments)
    assert done.exit_code == EXIT_USAGE, done.output


def test_a_pipe_that_somebody_writes_to_is_read() -> None:
    """As a shell's `--config <(…)`."""
    reader, writer = os.pipe()
    os.write(writer, b"extends: tiny\n")
    os.close(writer)
    done = run("plan", "--config", f"/dev/fd/{reader}", "--json")
    os.close(reader)
    assert json.loads(done.stdout)["profile"]["model"]["num_hidden_layers"] == 4


@pytest.mark.parametrize("name", ["loop", "a" * 300, "folder", "folder/x/y"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--config"], ["plan"], ["report"], ["replay"], ["check", "--baseline"],
        ["profile", "--config", "tiny", "--output"], ["profile", "--config", "tiny", "--html"],
        ["profile", "--config", "tiny", "--trace"], ["replay", "snapshot.pickle", "--html"],
        ["audit", "--measured"], ["profile", "--module"], ["report", "result.json", "--html"],
        ["validate", "--config", "tiny", "--device", "cpu", "--output"],
        ["check", "--update-baseline", "--config", "tiny", "--baseline"],
    ],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_refused(
    inputs: dict[str, Path], folder: Path, arguments: list[str], name: str
) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    makes = {
        "folder": ["validate"],
        "folder/x/y": ["validate", "profile", "check", "replay", "report"],
    }
    if arguments[0] in makes.get(name, ()) and len(arguments) > 1:
        pytest.skip("outputs make their folders")
    done = run(*arguments, f"{name}:build" if arguments[-1] == "--module" else name)
    assert done.exit_code == EXIT_USAGE, done.output
    assert "a bug" not in done.output


# Two at once


def test_an_entry_that_another_process_added_meanwhile_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = folder / "baseline.json", entry(config="other")
    run_tasks = Ask.run

    def while_another_writes(ask: Ask, tasks: Any) -> Any:
        found = run_tasks(ask, tasks)
        write_baseline(path, Baseline(entries=(other,)))
        return found

    monkeypatch.setattr(Ask, "run", while_another_writes)
    done = run("check", "--update-baseline", "--config", "tiny", "--baseline", path)
    assert done.exit_code == 0, done.output
    labels = [found.case.label for found in read_baseline(path).entries]
    assert labels == ["other", "tiny"]


# The folder of a validation


def finished(name: str) -> Validated:
    return Validated(name=name, key=KEY, result=training_1b())


NAMES = ["tiny", "日本", "中文", "Tiny", "ti.ny", "ti ny", "a" * 80, "a" * 81, "é", "e", "..", "-",
         "tiny-x", f"tiny-{KEY}"]  # fmt: skip


def test_cases_whose_names_are_alike_are_kept_apart(folder: Path) -> None:
    files = CaseFiles(folder)
    for name in NAMES:
        files.write(finished(name))
    assert len(list((folder / "cases").iterdir())) == len(NAMES)
    for name in NAMES:
        assert files.read(name, KEY) is not None, name


def test_a_case_replaces_what_was_found_under_other_conditions_and_nothing_else(
    folder: Path,
) -> None:
    files = CaseFiles(folder)
    for name in NAMES:
        files.write(finished(name))
    newer = Validated(name="日本", key="f" * 16, result=training_1b())
    files.write(newer)
    assert files.read("日本", KEY) is None
    assert files.read("日本", "f" * 16) is not None
    assert all(files.read(name, KEY) for name in NAMES if name != "日本")


# Text


LONG = "x" * 100_000
ODD = "a\nerror: b\x1b[31m\u202e"


@pytest.mark.parametrize("name", [LONG, ODD], ids=["long", "odd"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--config"], ["plan"], ["plan", "--gpu"], ["plan", "--budget"], ["plan", "--set"],
        ["plan", "--kv-dtype"], ["plan", "--alloc-conf"], ["plan", "--context"], ["replay"],
        ["report"], ["check", "--baseline"], ["check", "--relative"], ["check", "--absolute"],
        ["profile", "--module"], ["profile", "--device"], ["audit", "--measured"],
        ["profile", "--config", "tiny", "--output"], ["profiles", "--show"],
        ["validate", "--device"], ["replay", "s", "--capacity"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_wrong_is_one_short_line_that_is_safe_to_print(
    arguments: list[str], name: str
) -> None:
    if arguments[-1] == "--output" and name is ODD:
        pytest.skip("a file may be called so")
    done = run(*arguments, name)
    assert done.exit_code in (2, 3), done.output[:2000]
    assert "a bug" not in done.stderr
    for line in done.stderr.splitlines():
        assert len(line) < 1200
        assert printable(line) == line


def test_a_newline_in_a_key_is_no_new_line(folder: Path) -> None:
    (folder / "p.yaml").write_text('extends: tiny\n"a\\nerror: b": 1\n')
    (folder / "r.json").write_text(json.dumps({"schema": "tritter-mem.result/1", ODD: 1, LONG: 2}))
    (folder / "l.json").write_text(json.dumps({"schema": "tritter-mem.baseline/1", ODD: 1}))
    for arguments in (["plan", "--config", "p.yaml"], ["report", "r.json"],
                      ["check", "--baseline", "l.json"]):  # fmt: skip
        done = run(*arguments)
        assert done.exit_code == EXIT_USAGE
        assert all(line.startswith("error: ") for line in done.stderr.splitlines())
        assert not any(line.startswith("error: b") for line in done.stderr.splitlines())
