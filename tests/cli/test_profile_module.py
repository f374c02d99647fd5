"""`tritter-mem profile --module`: from third-party code to the record of any profile."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tritter_mem.cli.main import app
from tritter_mem.config.cards import find_card
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_NOT_MEASURED, EXIT_OK, EXIT_USAGE
from tritter_mem.models.user_code import ModuleCase
from tritter_mem.results.from_json import from_plain
from tritter_mem.results.record_file import read_results
from tritter_mem.results.run import MemoryUse
from tritter_mem.simulation.user_module import simulate_module

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
GPT = f"{EXAMPLES / 'gpt.py'}:build"
SMALL = json.dumps({"layers": 2, "width": 64, "batch": 2, "tokens": 64})
CODE = """
import torch
from torch import nn

def build(device, width=64):
    print("building")
    net, x = nn.Linear(width, width, device=device), torch.ones(8, width, device=device)
    return lambda: net(x)

def reads(device):
    x = torch.ones(3, device=device)
    return lambda: x.sum().item()

def fails(device):
    raise ValueError("no such layer")
"""


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "code.py"
    path.write_text(CODE)
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, arguments)])


def run_json(*arguments: str | Path) -> Any:
    done = run(*arguments, "--json")
    assert done.exit_code in (EXIT_OK, EXIT_DOES_NOT_FIT, EXIT_NOT_MEASURED), done.stderr
    return json.loads(done.stdout)


def test_gives_the_record_of_any_profile() -> None:
    record = run_json("--module", GPT, "--args", SMALL, "--gpu", "rtx-4090", "--steps", "2")
    assert record["schema"] == "tritter-mem.result/1"
    assert record["profile"]["name"] == "gpt.py:build"
    assert record["profile"]["module"]["arguments"] == json.loads(SMALL)
    assert (record["profile"]["module"]["warmup"], record["profile"]["module"]["steps"]) == (1, 2)
    assert record["profile"]["gpu"]["name"] == "rtx-4090"
    assert record["planned"] is None
    assert "not planned" in record["planned_reason"]
    assert record["simulated"]["device"] == "rtx-4090"
    assert [phase["name"] for phase in record["simulated"]["phases"]] == [
        "load", "forward", "backward", "optimizer",
    ]  # fmt: skip
    assert record["measured_reason"] == "no CUDA device: nothing was measured"
    assert record["verdict"]["basis"] == "simulated"


def test_components_sum_to_the_peak() -> None:
    simulated = run_json("--module", GPT, "--args", SMALL)["simulated"]
    assert sum(simulated["components"].values()) == simulated["allocated_peak_bytes"]


def test_same_case_has_the_same_hash_and_figures() -> None:
    first, second = (run_json("--module", GPT, "--args", SMALL) for _ in range(2))
    assert first["profile_hash"] == second["profile_hash"]
    assert first["simulated"] == second["simulated"]
    other = run_json("--module", GPT, "--args", SMALL, "--gpu", "h100")
    assert other["profile_hash"] != first["profile_hash"]


def test_tables_and_files(code: Path, tmp_path: Path) -> None:
    output, html, trace = tmp_path / "r.json", tmp_path / "r.html", tmp_path / "r.trace.gz"
    files = ("--output", output, "--html", html, "--trace", trace)
    done = run("--module", f"{code}:build", *files)
    assert done.exit_code == EXIT_OK, done.stderr
    assert "code.py:build" in done.stdout
    [result] = read_results(output)
    assert result.simulated is not None
    assert "<html" in html.read_text()
    assert trace.stat().st_size > 0


def test_what_the_code_prints_is_not_on_standard_output(code: Path) -> None:
    done = run("--module", f"{code}:build", "--json")
    json.loads(done.stdout)
    assert "building" in done.stderr


def test_what_does_not_fit_exits_1(code: Path) -> None:
    done = run("--module", f"{code}:build", "--args", '{"width": 65536}')
    assert done.exit_code == EXIT_DOES_NOT_FIT
    done = run("--module", f"{code}:build", "--budget", "1 MiB")
    assert done.exit_code == EXIT_DOES_NOT_FIT


def test_cpu_measures_in_a_child(code: Path) -> None:
    record = run_json("--module", f"{code}:build", "--args", '{"width": 512}', "--device", "cpu")
    measured, simulated = record["measured"], record["simulated"]
    assert measured["device"] == "cpu"
    assert measured["components"]["weights_bytes"] == (512 * 512 + 512) * 4
    assert all(phase["seconds"] > 0 for phase in measured["phases"])
    assert simulated["components"]["weights_bytes"] == measured["components"]["weights_bytes"]
    assert record["verdict"]["basis"] == "simulated"


def test_values_that_a_simulation_has_not_exit_3_with_the_line(code: Path) -> None:
    done = run("--module", f"{code}:reads", "--json")
    assert done.exit_code == EXIT_NOT_MEASURED
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {code}:12: `return lambda: x.sum().item()` needs the values")
    record = json.loads(done.stdout)
    assert record["simulated"] is None
    assert ":12:" in record["simulated_reason"]
    assert record["verdict"] is None


def test_values_are_there_on_the_cpu(code: Path) -> None:
    done = run("--module", f"{code}:reads", "--device", "cpu", "--json")
    assert done.exit_code == EXIT_OK, done.stderr
    record = json.loads(done.stdout)
    assert record["measured"]["device"] == "cpu"
    assert ":12:" in record["simulated_reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--module", "{code}:fails"], 'code.py:15: `raise ValueError("no such layer")` failed'),
        (["--module", "{code}:missing"], "there is no function 'missing'"),
        (["--module", "nowhere.py:build"], "there is no such file"),
        (["--module", "{code}"], "expected FILE.py:FUNCTION"),
        (["--module", "{code}:build", "--args", "{{x"], "--args: got '{x', which is not JSON"),
        (["--module", "{code}:build", "--args", '{{"wide": 3}}'], "it takes: width"),
        (["--module", "{code}:build", "--steps", "0"], "--steps: got 0, expected 1 or more"),
        (["--module", "{code}:build", "--gpu", "rtx-508"], "did you mean rtx-5080"),
        (["--module", "{code}:build", "--budget", "big"], "--budget: got 'big'"),
        (["--module", "{code}:build", "--device", "tpu"], "device: got 'tpu'"),
        (
            ["--module", "{code}:build", "--config", "tiny", "--kv-dtype", "int4"],
            "--config, --kv-dtype cannot be combined with --module",
        ),
        (["--args", "{{}}", "--steps", "3"], "--args, --steps needs --module"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(arguments: list[str], message: str, code: Path) -> None:
    done = run(*(argument.format(code=code) for argument in arguments))
    assert done.exit_code == EXIT_USAGE, done.stdout
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gpt_example(checkpointing: bool) -> None:
    arguments = {**json.loads(SMALL), "checkpointing": checkpointing}
    found = run_json("--module", GPT, "--args", json.dumps(arguments))["simulated"]["components"]
    assert all(found[f"{kind}_bytes"] for kind in ("weights", "embeddings", "optimizer_state"))


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the extra tritter-mem[hf]"
)
@pytest.mark.parametrize(
    ("function", "phases"),
    [("train", ["load", "forward", "backward", "optimizer"]), ("prefill", ["load", "step"])],
)
def test_hugging_face_example(function: str, phases: list[str]) -> None:
    arguments = json.dumps({"layers": 2, "width": 256, "tokens": 512})
    module = f"{EXAMPLES / 'llama.py'}:{function}"
    record = run_json("--module", module, "--args", arguments, "--device", "cpu")
    simulated, measured = record["simulated"], record["measured"]
    assert [phase["name"] for phase in simulated["phases"]] == phases
    if function == "train":  # the peak is in the loss, where the CPU and CUDA do the same
        activations = measured["components"]["activations_bytes"]
        assert simulated["components"]["activations_bytes"] == pytest.approx(activations, rel=0.005)


def test_help_shows_the_options() -> None:
    shown = run("--help").stdout
    for option in ("--module", "--args", "--warmup", "--steps"):
        assert option in shown


# Code that does what it likes to its process

HOSTILE = """
import ctypes, os, sys
import torch
from torch import nn

def good(device):
    net, x = nn.Linear(64, 64, device=device), torch.ones(8, 64, device=device)
    return lambda: net(x)

def ends(device):
    os._exit(0)

def crashes(device):
    ctypes.string_at(0)

def moves(device):
    os.chdir("/")
    return good(device)

def writes(device):
    os.write(1, b"not JSON")
    os.system("echo nor this")
    sys.stdout.write("nor that")
    return good(device)

class Odd(BaseException):
    pass

def odd(device):
    raise Odd("base of all")

def odd_step(device):
    def step():
        raise Odd("base of all")
    return step

def interrupts(device):
    raise KeyboardInterrupt

def leaves(device):
    sys.exit(0)

def kills(device):
    os.kill(os.getpid(), 9)

def closes(device):
    os.closerange(0, 256)
    return good(device)
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "code.py"
    path.write_text(HOSTILE)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("ends", EXIT_USAGE, "code.py:ends: the run ended with exit code 0 and no result"),
        ("crashes", EXIT_USAGE, "code.py:crashes: the run was killed by SIGSEGV: Fatal Python"),
        ("odd", EXIT_USAGE, 'code.py:30: `raise Odd("base of all")` failed: Odd: base of all'),
        ("odd_step", EXIT_USAGE, 'code.py:34: `raise Odd("base of all")` failed: Odd: base of'),
        ("interrupts", EXIT_USAGE, "code.py:interrupts: the run was killed by SIGINT"),
        ("leaves", EXIT_USAGE, "`sys.exit(0)` failed: SystemExit: 0"),
        ("kills", EXIT_NOT_MEASURED, "killed by SIGKILL"),
    ],
)
def test_code_that_ends_its_process_ends_that_alone(
    hostile: Path, function: str, code: int, words: str
) -> None:
    done = run("--module", f"{hostile.name}:{function}", "--json")
    assert done.exit_code == code, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert words in line


@pytest.mark.parametrize("function", ["good", "moves", "writes", "closes"])
def test_code_that_changes_its_process_changes_no_result(hostile: Path, function: str) -> None:
    done = run("--module", f"{hostile.name}:{function}", "--json", "--output", "out.json",
               "--trace", "out.trace.gz")  # fmt: skip
    assert done.exit_code == EXIT_OK, done.output
    record = json.loads(done.stdout)
    assert record["simulated"]["components"]["weights_bytes"] == (64 * 64 + 64) * 4
    assert {path.name for path in hostile.parent.iterdir()} >= {"out.json", "out.trace.gz"}


def test_what_is_simulated_apart_is_what_is_simulated_here(hostile: Path) -> None:
    record = run_json("--module", GPT, "--args", SMALL, "--gpu", "rtx-4090")
    case = ModuleCase(path=GPT.partition(":")[0], function="build", arguments=json.loads(SMALL))
    card = find_card("rtx-4090")
    here = simulate_module(case, card, budget_bytes=card.default_budget_bytes)
    assert from_plain(MemoryUse, record["simulated"]) == here
