"""The command line as a whole: help, completion, errors as lines and exit codes, broken pipes."""

import os
import signal
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tritter_mem.cli.main import COMMANDS, EXIT_BUG, app
from tritter_mem.ending import EXIT_PIPE
from tritter_mem.errors import EXIT_INTERRUPTED, ConfigError, MeasureError, TritterMemError
from tritter_mem.version import __version__

ROOT = Path(__file__).parents[2]
WRITTEN = [name for name in COMMANDS if find_spec(f"tritter_mem.cli.{name}")]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def run_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tritter_mem", *arguments],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the command `gpus` raise."""

    def command() -> None:
        """Fail."""
        raise error

    monkeypatch.setitem(sys.modules, "tritter_mem.cli.gpus", SimpleNamespace(command=command))


def test_no_arguments_show_the_help() -> None:
    done = run()
    assert "Usage: tritter-mem" in done.output
    assert all(name in done.output for name in COMMANDS)


def test_help_lists_every_command_with_its_line() -> None:
    done = run("--help")
    words = " ".join(done.output.split())
    assert done.exit_code == 0
    assert all(f"{name} {summary}" in words for name, summary in COMMANDS.items())


@pytest.mark.parametrize("name", WRITTEN)
def test_every_command_has_help_with_an_example(name: str) -> None:
    done = run(name, "--help")
    assert done.exit_code == 0, done.output
    assert f"Example: tritter-mem {name}" in " ".join(done.output.split())
    assert import_module(f"tritter_mem.cli.{name}").command.__doc__


def test_python_m_is_the_same_command_line() -> None:
    done = run_process("--version")
    assert (done.returncode, done.stdout) == (0, f"tritter-mem {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["profils"], "No such command 'profils'. Did you mean 'profiles', 'profile'?"),
        (["gpus", "--jsn"], "No such option"),
        (["gpus", "--jsn"], "--json"),
        (["doctor", "extra"], "Got unexpected extra argument"),
        (["profiles", "--show"], "Option '--show' requires an argument"),
    ],
)
def test_wrong_usage_is_explained_with_exit_code_2(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ConfigError("one", "two"), 2, "error: one\nerror: two\n"),
        (MeasureError("no card"), 3, "error: no card\n"),
        (KeyboardInterrupt(), EXIT_INTERRUPTED, "interrupted\n"),
        (
            ModuleNotFoundError("No module named 'yaml'", name="yaml"),
            2,
            "error: this needs pyyaml, which is not installed: pip install pyyaml\n",
        ),
        (
            ModuleNotFoundError("No module named 'tritter_mem.odd'", name="tritter_mem.odd"),
            EXIT_BUG,
            "error: this is a bug in tritter-mem: ModuleNotFoundError: No module named "
            "'tritter_mem.odd'; "
            "run it again with --debug to see where\n",
        ),
        (
            ZeroDivisionError("division\nby zero"),
            EXIT_BUG,
            "error: this is a bug in tritter-mem: ZeroDivisionError: division by zero; "
            "run it again with --debug to see where\n",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_lines_and_exit_codes(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, lines: str
) -> None:
    failing(monkeypatch, error)
    done = run("gpus")
    assert (done.exit_code, done.stderr, done.stdout) == (code, lines, "")


@pytest.mark.parametrize("arguments", [["--debug", "gpus"], ["gpus", "--debug"]])
def test_debug_lets_the_error_through(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    failing(monkeypatch, TritterMemError("deep"))
    done = run(*arguments)
    assert isinstance(done.exception, TritterMemError)


def test_debug_shows_a_traceback_and_nothing_else_does() -> None:
    plain = run_process("profiles", "--show", "none")
    debug = run_process("profiles", "--show", "none", "--debug")
    assert plain.returncode == 2
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert "find_profile" in debug.stderr


def test_an_interrupt_ends_with_its_exit_code() -> None:
    code = (
        "import os, signal, sys\n"
        "from types import SimpleNamespace\n"
        "from tritter_mem.cli.main import main\n"
        "def command(): os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.modules['tritter_mem.cli.gpus'] = SimpleNamespace(command=command)\n"
        "sys.argv = ['tritter-mem', 'gpus']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (EXIT_INTERRUPTED, "interrupted\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "tritter_mem", "gpus", "--json"],
        cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (EXIT_PIPE, "")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("tritter-mem pro", {"profile", "profiles"}),
        ("tritter-mem models --s", {"--show", "--schema"}),
        ("tritter-mem models --show qwen3-23", {"qwen3-235b-a22b"}),
        ("tritter-mem profiles --show 7b-128k-", {"7b-128k-gqa", "7b-128k-hybrid", "7b-128k-int2"}),
        ("tritter-mem plan --gpu rtx-508", {"rtx-5080"}),
        ("tritter-mem plan --mode ", {"inference", "training"}),
        ("tritter-mem plan --kv-dtype int", {"int8", "int4", "int2"}),
        ("tritter-mem plan --checkpoint seg", {"segments"}),
    ],
)
def test_the_shell_completes_commands_options_and_names(typed: str, completed: set[str]) -> None:
    done = run_process(
        _TRITTER_MEM_COMPLETE="complete_bash",
        COMP_WORDS=typed,
        COMP_CWORD=str(len(typed.split(" ")) - 1),
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == completed


def test_completion_can_be_installed() -> None:
    done = run_process(
        "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert done.returncode == 0, done.stderr
    assert "complete -o default -F" in done.stdout
