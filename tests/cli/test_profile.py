"""`tritter-mem profile`: one command from a profile to tables, JSON, HTML and an exit code."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from benchmarks.trace_reader import load_log
from tritter_mem.cli.main import app
from tritter_mem.config.loading import load_profile
from tritter_mem.config.profile import Profile
from tritter_mem.errors import (
    EXIT_DOES_NOT_FIT,
    EXIT_INTERRUPTED,
    EXIT_NOT_MEASURED,
    EXIT_OK,
    EXIT_USAGE,
)
from tritter_mem.results.record_file import read_results


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, arguments)])


def run_json(*arguments: str | Path) -> Any:
    done = run(*arguments, "--json")
    assert done.exit_code in (EXIT_OK, EXIT_DOES_NOT_FIT), done.stderr
    return json.loads(done.stdout)


def test_real_run_shows_tables_and_writes_both_files(tmp_path: Path) -> None:
    output, html = tmp_path / "tiny.json", tmp_path / "deeper" / "tiny.html"
    done = run("--config", "tiny", "--device", "cpu", "--output", output, "--html", html)
    assert done.exit_code == EXIT_OK, done.stderr
    assert "Measured" in done.stdout
    [result] = read_results(output)
    assert result.measured is not None
    assert result.measured.device == "cpu"
    assert "<html" in html.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deeper", "tiny.json"]


def test_units_and_the_place_of_the_chart_library_are_as_asked(tmp_path: Path) -> None:
    html = tmp_path / "tiny.html"
    asked = ("--units", "GB", "--plotlyjs", "directory", "--html", html)
    done = run("--config", "tiny", "--fast", *asked)
    assert done.exit_code == EXIT_OK, done.stderr
    assert "the budget of 16.11 GB" in done.stdout
    assert "the budget of 16.11 GB" in html.read_text()
    assert (tmp_path / "plotly.min.js").exists()


def test_json_is_one_record_and_nothing_else() -> None:
    record = run_json("--config", "tiny")
    assert record["schema"] == "tritter-mem.result/1"
    assert record["measured"] is None
    assert record["measured_reason"] == "no CUDA device: nothing was measured"


def test_several_profiles_make_a_list_in_their_order() -> None:
    records = run_json("--config", "tiny", "--config", "125m")
    assert [record["profile"]["name"] for record in records] == ["tiny", "125m"]


def test_options_override_the_profile() -> None:
    record = run_json("--config", "tiny", "--context", "1k", "--set", "workload.batch=2")
    workload = record["profile"]["workload"]
    assert (workload["context"], workload["batch"]) == (1024, 2)


def test_without_a_device_one_line_says_that_nothing_was_measured() -> None:
    done = run("--config", "tiny")
    assert done.exit_code == EXIT_OK
    lines = [line for line in done.stdout.splitlines() if "nothing was measured" in line]
    assert len(lines) == 1


def test_what_does_not_fit_exits_1() -> None:
    assert run("--config", "tiny", "--budget", "1MiB").exit_code == EXIT_DOES_NOT_FIT


def test_one_of_several_that_does_not_fit_exits_1() -> None:
    done = run("--config", "tiny", "--config", "7b", "--gpu", "rtx-5080")
    assert done.exit_code == EXIT_DOES_NOT_FIT


def test_failed_measurement_keeps_the_plan_and_exits_3(tmp_path: Path) -> None:
    output = tmp_path / "tiny.json"
    done = run("--config", "tiny", "--device", "cpu", "--time-limit", "0.05", "--output", output)
    assert done.exit_code == EXIT_NOT_MEASURED
    assert "error: tiny: the run was ended at its time limit of 0.05 s" in done.stderr
    [result] = read_results(output)
    assert result.planned is not None
    assert result.measured is None
    assert "time limit" in str(result.measured_reason)


def test_named_cuda_device_that_is_missing_exits_3() -> None:
    done = run("--config", "tiny", "--device", "cuda:1")
    assert done.exit_code == EXIT_NOT_MEASURED
    assert "device cuda:1: no CUDA device" in done.stderr
    assert "planned" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "tiny", "--device", "tpu"], "device: got 'tpu', expected auto"),
        (["--config", "tiny", "--time-limit", "-3"], "time limit: got -3 s"),
        (["--config", "tinny"], "tiny"),
        (["--config", "tiny", "--context", "-5"], "--context"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == EXIT_USAGE
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("option", ["--output", "--html"])
def test_unwritable_output_is_found_before_the_run(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    start = time.monotonic()
    done = run("--config", "125m", "--device", "cpu", option, tmp_path / "file" / "out")
    assert done.exit_code == EXIT_USAGE
    assert "cannot be written" in done.stderr
    assert time.monotonic() - start < 10


def test_one_file_for_both_outputs_is_refused(tmp_path: Path) -> None:
    done = run("--config", "tiny", "--output", tmp_path / "x", "--html", tmp_path / "x")
    assert done.exit_code == EXIT_USAGE
    assert "two outputs would write" in done.stderr


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_ctrl_c_leaves_no_child_and_keeps_what_is_finished(tmp_path: Path) -> None:
    """This model takes far longer on a CPU than it is given here."""
    output = tmp_path / "125m.json"
    code = "from tritter_mem.cli.main import main; main()"
    command = [sys.executable, "-c", code, "profile", "--config", "125m", "--device", "cpu"]
    command += ["--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as caller:
        wait_for(lambda: children(caller.pid))
        [child] = children(caller.pid)
        caller.send_signal(signal.SIGINT)
        _, errors = caller.communicate(timeout=20)
    assert caller.returncode == EXIT_INTERRUPTED
    assert errors.splitlines()[-1] == "interrupted"
    wait_for(lambda: not Path(f"/proc/{child}").exists())  # until whoever inherits it has looked
    [result] = read_results(output)
    assert result.simulated is not None
    assert (result.measured, result.measured_reason) == (None, "interrupted")
    assert list(tmp_path.iterdir()) == [output]


def test_an_interruption_keeps_what_is_finished(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tritter_mem.profiling import profiler as module

    real = module.profile

    def interrupted_at_125m(profile: Profile, **settings: Any) -> Any:
        if profile.name == "125m":
            raise KeyboardInterrupt
        return real(profile, **settings)

    monkeypatch.setattr(module, "profile", interrupted_at_125m)
    output = tmp_path / "both.json"
    done = run("--config", "tiny", "--config", "125m", "--output", output)
    assert done.exit_code == EXIT_INTERRUPTED
    assert done.stderr == "interrupted\n"
    assert [result.name for result in read_results(output)] == ["tiny"]
    assert "tiny · inference" in done.stdout


def test_a_failed_measurement_simulates_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from tritter_mem.profiling import profiler as module

    simulated = []
    real = module.simulate
    monkeypatch.setattr(
        module, "simulate", lambda *a, **settings: simulated.append(1) or real(*a, **settings)
    )
    done = run("--config", "tiny", "--device", "cuda:1")
    assert done.exit_code == EXIT_NOT_MEASURED
    assert simulated == [1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the profiles that are asked for; each gets the tiny one's result."""
    from tritter_mem.profiling import profiler as module

    real, names = module.profile, []

    def answered(profile: Profile, **settings: Any) -> Any:
        names.append(profile.name)
        return real(load_profile("tiny"), device="none")

    monkeypatch.setattr(module, "profile", answered)
    return names


def test_without_a_profile_7b_stands_beside_the_routes(asked: list[str], tmp_path: Path) -> None:
    html = tmp_path / "routes.html"
    done = run("--context", "128k", "--html", html)
    assert asked == ["7b", "7b-128k-gqa", "7b-128k-hybrid", "7b-128k-int2", "7b-streaming-4k"]
    assert html.exists()
    lines = [line for line in done.stdout.splitlines() if line.startswith("not measured")]
    assert lines == ["not measured: measurement was turned off (--device none)"]


def test_without_a_profile_7b_alone_is_trained(asked: list[str]) -> None:
    run("--mode", "training")
    assert asked == ["7b"]


def test_trade_off_of_every_policy() -> None:
    options = ("--config", "tiny", "--mode", "training", "--checkpoint", "all")
    record = run_json(*options)
    cases = {(case["policy"], case["n"]): case for case in record["checkpointing"]}
    assert len(cases) == 8
    assert all(case["measured_seconds"] is None for case in cases.values())
    assert record["profile"]["training"]["checkpointing"]["policy"] == "every-nth"
    own = cases["every-nth", 4]
    assert own["allocated_peak_bytes"] == record["simulated"]["allocated_peak_bytes"]
    assert "Checkpointing trade-off, simulated" in run(*options).stdout


def test_repeated_runs_show_median_and_spread() -> None:
    record = run_json("--config", "tiny", "--device", "cpu", "--repeat", "2")
    spread = record["measured"]["spread"]
    assert spread["runs"] == 2
    assert spread["minimum"]["seconds"] <= spread["maximum"]["seconds"]
    peak = record["measured"]["allocated_peak_bytes"]
    assert spread["minimum"]["allocated_peak_bytes"] == peak


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeat", "0"], "repeat: got 0, expected 1 to 100"),
        (["--snapshot", "{folder}/s", "--device", "cpu"], "snapshot: got --device cpu"),
        (["--snapshot", "{folder}/s", "--config", "125m"], "a file holds the snapshot of one"),
    ],
)
def test_wrong_measuring_exits_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run("--config", "tiny", *(part.format(folder=tmp_path) for part in arguments))
    assert done.exit_code == EXIT_USAGE
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_snapshot_without_a_device_exits_3_and_keeps_the_plan(tmp_path: Path) -> None:
    done = run("--config", "tiny", "--snapshot", tmp_path / "snapshot.pickle")
    assert done.exit_code == EXIT_NOT_MEASURED
    assert "snapshot: no CUDA device" in done.stderr
    assert "planned" in done.stdout


def test_full_disk_is_said_and_the_tables_are_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "tiny.json"
    output.write_text("what was there before")

    def full(path: Path, *args: Any, **settings: Any) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        done = run("--config", "tiny", "--device", "none", "--output", output)
    assert done.exit_code == EXIT_USAGE
    assert "tiny.json: cannot be written: No space left on device" in done.stderr
    assert "tiny · inference" in done.stdout
    assert output.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [output]


def test_trade_off_of_inference_is_refused() -> None:
    done = run("--config", "tiny", "--checkpoint", "all")
    assert done.exit_code == EXIT_USAGE
    assert "add --mode training" in done.stderr


def test_trace_is_written(tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    assert run("--config", "tiny", "--trace", path).exit_code == EXIT_OK
    assert {span.name for span in load_log(path).spans} >= {"load", "prefill", "decode"}


def test_a_file_holds_one_trace(tmp_path: Path) -> None:
    done = run("--config", "tiny", "--config", "125m", "--trace", tmp_path / "trace.gz")
    assert done.exit_code == EXIT_USAGE
    assert "--trace: got 2 profiles, but a file holds the trace of one" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_shows_every_option_and_an_example() -> None:
    done = run("--help")
    assert "Example: tritter-mem profile" in done.stdout
    for option in (
        "--device",
        "--time-limit",
        "--json",
        "--output",
        "--html",
        "--config",
        "--trace",
    ):
        assert option in done.stdout
