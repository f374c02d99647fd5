"""Commands that end early: Ctrl-C at any moment, SIGTERM, and an output that nobody takes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tritter_mem.ending import EXIT_PIPE
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_INTERRUPTED, EXIT_NOT_MEASURED, EXIT_USAGE

ROOT = Path(__file__).parents[2]
TOOL = [sys.executable, "-m", "tritter_mem"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}


def default_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(*command: str, **how: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, env=ENVIRONMENT, text=True, check=False, stderr=subprocess.PIPE,
        preexec_fn=default_interrupts, **how,
    )  # fmt: skip


# Nobody takes the output

SHOWING = [
    ["plan", "--config", "7b"], ["plan", "--config", "7b", "--json"], ["gpus"], ["gpus", "--json"],
    ["--help"], ["plan", "--help"], ["--version"], ["profiles", "--schema"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", SHOWING, ids=" ".join)
def test_a_closed_pipe_is_no_verdict(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(*TOOL, *arguments, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (EXIT_PIPE, "")


@pytest.mark.parametrize("arguments", SHOWING, ids=" ".join)
def test_a_full_output_is_named(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(*TOOL, *arguments, stdout=full)
    said = "error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (EXIT_USAGE, said)


def test_a_closed_output_is_refused_before_anything_runs(tmp_path: Path) -> None:
    command = f"{sys.executable} -m tritter_mem profile --config tiny --output out.json >&-"
    done = run("sh", "-c", command, cwd=tmp_path)
    assert done.returncode == EXIT_USAGE
    assert done.stderr.startswith("error: standard output is closed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", ["2>&-", "<&-", "<&- 2>&-"])
def test_another_closed_stream_changes_neither_the_exit_code_nor_a_file(
    tmp_path: Path, closed: str
) -> None:
    """Where a stream is closed, the next file that is opened gets its number."""
    tool = f"{sys.executable} -m tritter_mem"
    done = run("sh", "-c", f"{tool} profile --config tiny --json --output out.json {closed}",
               cwd=tmp_path, stdout=subprocess.PIPE)  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith("{")
    assert (tmp_path / "out.json").read_text().startswith('{"schema"')
    done = run("sh", "-c", f"{tool} plan --config 7b {closed}", stdout=subprocess.PIPE)
    assert done.returncode == EXIT_DOES_NOT_FIT


# Ctrl-C

AT_AN_IMPORT = """
import builtins, signal, sys
real, wanted = builtins.__import__, sys.argv.pop(1)
def importing(name, *more, **named):
    if name == wanted:
        builtins.__import__ = real
        {interrupt}
    return real(name, *more, **named)
from tritter_mem.__main__ import main
builtins.__import__ = importing
main()
"""
PLAIN = "signal.raise_signal(signal.SIGINT)"
AS_ANOTHER_ERROR = """
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed without raising an exception")
"""
SWALLOWED = """
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            pass
"""
IMPORTS = ["typer", "tritter_mem.cli.main", "tritter_mem.config.loading", "yaml", "rich.console",
           "tritter_mem.planner.result"]  # fmt: skip


@pytest.mark.parametrize("interrupt", [PLAIN, AS_ANOTHER_ERROR], ids=["plain", "as another error"])
@pytest.mark.parametrize("module", IMPORTS)
def test_an_interrupted_import_is_an_interrupted_command(module: str, interrupt: str) -> None:
    code = AT_AN_IMPORT.format(interrupt=interrupt)
    done = run(sys.executable, "-c", code, module, "plan", "--config", "7b",
               stdout=subprocess.PIPE)  # fmt: skip
    assert (done.returncode, done.stderr) == (EXIT_INTERRUPTED, "interrupted\n")


def test_an_interrupt_that_a_library_swallows_still_counts() -> None:
    code = AT_AN_IMPORT.format(interrupt=SWALLOWED)
    done = run(sys.executable, "-c", code, "yaml", "plan", "--config", "7b", stdout=subprocess.PIPE)
    assert done.returncode == EXIT_INTERRUPTED
    assert "Traceback" not in done.stderr


IN_A_COMMAND = """
import signal, sys, time
from types import SimpleNamespace
class Fragile:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def command():
    {body}
sys.modules["tritter_mem.cli.gpus"] = SimpleNamespace(command=command)
from tritter_mem.__main__ import main
sys.argv = ["tritter-mem", "gpus"]
main()
"""


@pytest.mark.parametrize(
    "body",
    [
        "Fragile(); time.sleep(300)",  # Python swallows what a destructor raises
        "signal.raise_signal(signal.SIGINT)",
        "try: signal.raise_signal(signal.SIGINT)\n    finally: 1 / 0",
    ],
    ids=["in a destructor", "plain", "as another error"],
)
def test_an_interrupted_command_says_so_and_nothing_else(body: str) -> None:
    done = run(sys.executable, "-c", IN_A_COMMAND.format(body=body), stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr, done.stdout) == (EXIT_INTERRUPTED, "interrupted\n", "")


def test_a_job_in_the_background_does_not_hear_the_terminal() -> None:
    """A shell starts it with SIGINT ignored."""
    code = IN_A_COMMAND.format(body="signal.raise_signal(signal.SIGINT); print('done')")
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n")


# SIGTERM, SIGHUP


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_measurement_that_is_ended_leaves_nothing(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [*TOOL, "profile", "--config", "tiny", "--set", "workload.new_tokens=4000",
         "--set", "workload.context=8k", "--device", "cpu", "--fast"],
        env={**ENVIRONMENT, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509  (nohup ignores it)
    )  # fmt: skip
    while not list(tmp_path.glob("tritter-mem-*/output.txt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (folder,) = tmp_path.glob("tritter-mem-*")
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert list(tmp_path.glob("tritter-mem-*")) == []
    assert not any(str(folder) in command for command in _commands())


def _commands() -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended
            continue
    return found


# Little memory


@pytest.mark.parametrize("kibibytes", [200_000, 400_000])
def test_a_limit_on_memory_is_no_bug(kibibytes: int) -> None:
    tool = f"{sys.executable} -m tritter_mem profile --config tiny --json"
    done = run("sh", "-c", f"ulimit -v {kibibytes}; {tool}", stdout=subprocess.PIPE)
    assert done.returncode == EXIT_NOT_MEASURED
    assert done.stderr.startswith("error: not enough memory (")
    assert "ulimit -v" in done.stderr
    assert done.stderr.count("\n") == 1
