"""What a new user types who knows PyTorch, Hugging Face and vLLM, and what the answer is."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tritter_mem.cli.main import COMMANDS, MEANT_COMMANDS, MEANT_OPTIONS, app

JSON_MODEL = json.dumps({
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 256,
})  # fmt: skip


def run(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, arguments, input=stdin)


@pytest.mark.parametrize("arguments", [["-h"], ["help"], ["help", "plan"], ["plan", "-h"]])
def test_help_is_found_by_every_name(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage: tritter-mem")
    assert ("tritter-mem plan" in done.stdout.splitlines()[0]) is ("plan" in arguments)


def test_help_of_an_unknown_command_is_refused() -> None:
    assert run("help", "nonsense").exit_code == 2


def test_the_version_has_a_short_option() -> None:
    assert run("-V").stdout == run("--version").stdout


@pytest.mark.parametrize("card", ["rtx4090", "RTX 4090", "4090", "4090 24GB", "GeForce RTX4090"])
def test_a_card_is_one_card_however_it_is_written(card: str) -> None:
    done = run("plan", "qwen3-0.6b", "--gpu", card, "--json")
    assert json.loads(done.stdout)["profile"]["gpu"]["name"] == "rtx-4090"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "4060 Ti"], "'4060 Ti' could be rtx-4060-ti-16gb or rtx-4060-ti-8gb; name one"),
        (["--gpu", "cuda:0"], "auto is the one in this machine"),
        (["--budget", "16"], "--budget: 16 would be 16 bytes; for gibibytes, write 16GiB"),
        (["--budget", "40GB"], "--budget: got 40GB, but rtx-5080 has 17.09 GB of memory"),
        (["--budget", "40GiB"], "--budget: got 40GiB, but rtx-5080 has 15.92 GiB of memory"),
        (["--budget", "5PB"], "expected a size such as 15GiB or 15GB, from 1 B to 1,024 TiB\n"),
        (["--alloc-conf", "nonsense"], "--alloc-conf: got 'nonsense', expected key:value"),
        (["--gpu", "h100", "--gpu", "h200"], "--gpu: given 2 times; give it once"),
        (["--context", "4k", "--context", "8k"], "--context: given 2 times; give it once"),
        (["--kv-dtype", "fp16"], "expected auto: transformers keeps keys and values in the type"),
        (["--max-model-len", "32k"], "No such option: --max-model-len. Did you mean --context?"),
        (["--quantization", "nf4"], "Did you mean --set weights.quantization=bitsandbytes-nf4?"),
        (["--max", "context", "--html", "x.html"], "--html needs a plan"),
    ],
)
def test_a_wrong_option_says_what_to_type(arguments: list[str], message: str) -> None:
    done = run("plan", "qwen3-0.6b", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_settings_are_refused_where_the_allocator_is_not_played_too() -> None:
    done = run("plan", "7b", "--mode", "train", "--set", "allocator.conf=nonsense")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "got 'nonsense', expected key:value" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "section", "key", "value"),
    [
        (["qwen3-0.6b", "--dtype", "bf16"], "weights", "dtype", "bfloat16"),
        (["qwen3-0.6b", "--dtype", "FP16"], "weights", "dtype", "float16"),
        (["qwen3-0.6b", "--mode", "train"], "workload", "mode", "training"),
        (["qwen3-0.6b", "--set", "weights.quantization=nf4"], "weights", "quantization",
         "bitsandbytes-nf4"),
        (["tiny", "--kv-dtype", "bf16"], "kv_cache", "dtype", "bfloat16"),
        (["tiny", "--kv-dtype", "8bit"], "kv_cache", "dtype", "int8"),
    ],
)  # fmt: skip
def test_the_short_names_of_types_and_modes_are_understood(
    arguments: list[str], section: str, key: str, value: str
) -> None:
    done = run("plan", *arguments, "--json", "--gpu", "h100")
    assert json.loads(done.stdout)["profile"][section][key] == value


def test_the_dtype_of_the_bundled_model_is_another_key() -> None:
    done = run("plan", "tiny", "--dtype", "bf16")
    assert done.exit_code == 2
    assert "--dtype: the bundled model has weights.format instead" in done.stderr


@pytest.mark.parametrize("text", ["model: qwen3-0.6b\n", "extends: tiny\n", JSON_MODEL])
def test_a_profile_and_a_config_are_read_from_standard_input(text: str) -> None:
    done = run("plan", "--config", "-", "--json", stdin=text)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["profile"]["name"] == "stdin"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "standard input: got nothing, expected a mapping"),
        ("modle: 7b\n", "standard input:1: modle: unknown key"),
        ("extends: nothing\n", "standard input:1: extends: nothing: no bundled model"),
        ("\0", "standard input: got a binary file"),
    ],
)
def test_what_is_wrong_with_standard_input_is_said(text: str, message: str) -> None:
    done = run("plan", "--config", "-", stdin=text)
    assert done.exit_code == 2
    assert message in done.stderr


def test_plan_writes_a_page(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    done = run("plan", "tiny", "--html", str(page), "--plotlyjs", "cdn")
    assert done.exit_code == 0, done.stderr
    assert "<html" in page.read_text(encoding="utf-8")
    assert "fits: needs" in done.stdout


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    done = run("plan", "tiny", "--html", str(tmp_path))
    assert (done.exit_code, done.stdout) == (2, "")


def test_a_plan_without_a_model_says_which_it_takes() -> None:
    done = run("plan")
    assert "no MODEL: planning the bundled 7b; name one, such as qwen3-8b" in done.stderr
    assert "no MODEL" not in run("plan", "7b").stderr


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fit", "Did you mean 'plan'?"),
        ("version", "Did you mean '--version'?"),
        ("qwen3-8b", "To plan a model, type: tritter-mem plan qwen3-8b"),
        ("Qwen/Qwen3-8B", "To plan a model, type: tritter-mem plan Qwen/Qwen3-8B"),
        ("plna", "Did you mean 'plan'"),
    ],
)
def test_a_word_that_is_no_command_says_which_was_meant(word: str, message: str) -> None:
    done = run(word)
    assert done.exit_code == 2
    assert message in done.stderr


def test_every_meant_name_exists() -> None:
    assert set(MEANT_COMMANDS.values()) <= {*COMMANDS, "--version"}
    helps = " ".join(run(name, "--help").stdout for name in ("plan", "profile", "rehearse"))
    assert all(meant.partition(" ")[0] in helps for meant in MEANT_OPTIONS.values())
    assert not set(MEANT_COMMANDS) & set(COMMANDS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen3", "did you mean qwen3-0.6b, qwen3-1.7b or qwen3-4b?"),
        ("train.py", "Python code is simulated with --module train.py:FUNCTION"),
        ("model.safetensors", "name the folder that holds it and its config.json"),
        ("config.json", "config.json: no such file"),
    ],
)
def test_a_name_that_is_no_model_says_what_to_name(name: str, message: str) -> None:
    done = run("plan", name)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_model_and_a_card_are_shown_by_their_names() -> None:
    assert run("models", "tiny").stdout == run("models", "--show", "tiny").stdout
    cards = json.loads(run("gpus", "h100", "RTX 4090", "--json").stdout)
    assert [card["name"] for card in cards] == ["rtx-4090", "h100"]


@pytest.mark.parametrize("card", ["mi300x", "mi325x", "mi350x", "RX 7900 XTX"])
def test_amd_cards_are_planned_with_what_is_not_known(card: str) -> None:
    done = run("plan", "qwen3-0.6b", "--gpu", card)
    words = " ".join(done.stdout.split())
    assert done.exit_code == 0, done.stderr
    assert "this is an AMD card" in words
    assert "No plan was compared with a run on ROCm yet" in words


def test_amd_cards_are_neither_simulated_nor_rehearsed() -> None:
    simulated = run("profile", "tiny", "--gpu", "mi300x", "--device", "none")
    assert simulated.exit_code == 3
    assert "mi300x is an AMD card" in simulated.stderr
    rehearsed = run("rehearse", "--gpu", "mi300x", "--", "python", "-c", "0")
    assert rehearsed.exit_code == 2
    assert "a rehearsal runs PyTorch's CUDA build" in rehearsed.stderr


def test_a_larger_card_is_of_the_same_vendor() -> None:
    def cards(gpu: str) -> list[str]:
        done = run("plan", "qwen3-32b", "--gpu", gpu, "--json")
        return list(json.loads(done.stdout)["verdict"]["cards"])

    assert not any(card.startswith(("mi", "rx")) for card in cards("rtx-4090"))
    assert cards("rx-7900-xtx")
    assert all(card.startswith("mi") for card in cards("rx-7900-xtx"))


def test_debug_behind_two_hyphens_is_the_command_s_own() -> None:
    done = run("rehearse", "--gpu", "mi300x", "--", "python", "train.py", "--debug")
    assert done.exit_code == 2
    assert "an AMD card" in done.stderr
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_comparisons_name_the_card_and_its_budget_in_80_columns() -> None:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["plan", "tiny", "125m", "--gpu", "4090"])
    rows = [line for line in done.stdout.splitlines() if line.startswith(("tiny", "125m"))]
    assert len(rows) == 2
    assert all("rtx-4090" in row and "22.50 GiB" in row for row in rows)
