"""`tritter-mem replay`, as a user types it."""

import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner
from typer.testing import Result as Done

from tests.allocator.build import BASE, dump, event, fragmented_snapshot, live, segment, snapshot
from tritter_mem.cli import replay as module
from tritter_mem.cli.main import app
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_USAGE
from tritter_mem.units import MiB


def run(*arguments: str | Path) -> Done:
    return CliRunner().invoke(app, ["replay", *map(str, arguments)], env={"COLUMNS": "120"})


@pytest.fixture
def fragmented(tmp_path: Path) -> Path:
    return fragmented_snapshot(tmp_path / "run.pickle")


def test_fidelity_scenarios_and_advice_are_printed(fragmented: Path) -> None:
    done = run(fragmented)
    assert done.exit_code == EXIT_OK
    assert "4 of 4 segment allocations as recorded, 0 extra" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("expandable_segments"))
    assert row.split()[:5] == ["expandable_segments:True", "190.0", "MiB", "200.0", "MiB"]
    assert done.stdout.rstrip().endswith(
        "Use expandable_segments:True: reserves 200.0 MiB at the peak, 20.0 MiB less."
    )
    assert done.stderr == ""


def test_a_capacity_that_the_recorded_settings_exceed_exits_1(fragmented: Path) -> None:
    done = run(fragmented, "--capacity", "210MiB")
    assert done.exit_code == EXIT_DOES_NOT_FIT
    assert "Out of memory at event 20 of 20" in " ".join(done.stdout.split())
    assert run(fragmented, "--capacity", "220MiB").exit_code == EXIT_OK


def test_settings_can_be_added(fragmented: Path) -> None:
    done = run(fragmented, "--alloc-conf", "max_split_size_mb:32", "--alloc-conf", "backend:native")
    assert "\nmax_split_size_mb:32 " in done.stdout
    assert "Without effect on memory in backend:native: backend." in done.stdout


def test_json_is_one_document_and_nothing_else(fragmented: Path) -> None:
    done = run(fragmented, "--json", "--capacity", "210MiB")
    assert done.exit_code == EXIT_DOES_NOT_FIT
    record = json.loads(done.stdout)
    assert record["schema"] == "tritter-mem.replay/1"
    assert record["devices"][0]["scenarios"][0]["out_of_memory"]["requested_bytes"] == 40 * MiB
    assert done.stderr == ""


def test_html_is_written_beside_the_table(fragmented: Path) -> None:
    page = fragmented.with_name("new") / "page.html"
    done = run(fragmented, "--html", page)
    assert done.exit_code == EXIT_OK
    assert "Allocator settings compared" in done.stdout
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--capacity", "much"], "--capacity: got 'much', expected a memory size"),
        (["--capacity", "0"], "capacity: got 0 bytes, expected a positive size"),
        (["--alloc-conf", "expandible_segments:True"], "did you mean expandable_segments?"),
        (["--html", "/proc/no/page.html"], "cannot be written"),
    ],
)
def test_wrong_options_are_one_line(fragmented: Path, arguments: list[str], said: str) -> None:
    done = run(fragmented, *arguments)
    assert done.exit_code == EXIT_USAGE
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_the_page_must_not_replace_the_snapshot(fragmented: Path) -> None:
    before = fragmented.read_bytes()
    done = run(fragmented, "--html", fragmented)
    assert done.exit_code == EXIT_USAGE
    assert "this command reads it" in done.stderr
    assert fragmented.read_bytes() == before


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b'{"segments": []}', "this is JSON"),
        (b"cos\nsystem\n.", "'os.system': refused"),
        (pickle.dumps({"segments": []})[:-3], "truncated"),
        (pickle.dumps({"model": {}}), "no 'segments' (found: 'model')"),
        (pickle.dumps(snapshot([segment(BASE, live(2 * MiB))], [])), "no history to replay"),
        (pickle.dumps(snapshot([], [])), "no history to replay"),
    ],
)
def test_a_file_that_is_no_snapshot_exits_2_with_one_line(
    tmp_path: Path, data: bytes, said: str
) -> None:
    path = tmp_path / "s.pickle"
    path.write_bytes(data)
    done = run(path)
    assert done.exit_code == EXIT_USAGE
    assert done.stderr.startswith(f"error: {path}: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_frees_of_what_was_never_allocated_are_a_counted_warning(tmp_path: Path) -> None:
    never = [event(f"free_{part}", BASE, 512) for part in ("requested", "completed")]
    made = snapshot([], [*never, event("oom", 0, 512)])
    done = run(dump(tmp_path / "s.pickle", made))
    assert done.exit_code == EXIT_OK
    assert "frees of memory that was never allocated, ignored: 1" in done.stdout


def test_a_bar_is_shown_on_standard_error_once_work_takes_a_second(
    fragmented: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    done = run(fragmented, "--json")
    assert "replaying" in done.stderr
    assert json.loads(done.stdout)["schema"] == "tritter-mem.replay/1"


def test_a_replay_loads_neither_torch_nor_pandas(fragmented: Path) -> None:
    code = (
        "import sys\n"
        "from tritter_mem.cli.main import app\n"
        f"try: app(['replay', {str(fragmented)!r}])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'plotly', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 10


def test_the_library_has_the_same_function() -> None:
    import tritter_mem
    from tritter_mem.recordings.replay_snapshot import replay

    assert tritter_mem.replay is replay
