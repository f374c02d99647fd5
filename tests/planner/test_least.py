"""What a named model takes at least, and what `plan MODEL` says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.models import hub_server
from tests.models.hub_server import HubServer, Repository
from tritter_mem.cli.main import app
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_USAGE

# Llama 3.1 8B: https://huggingface.co/meta-llama/Llama-3.1-8B, config.json.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    "an_unknown_key": 3,
}
PARAMETERS = 8_030_261_248
A_TOKEN = 2 * 32 * 8 * 128 * 2


def plan(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    return done.exit_code, done.output


def planned(*arguments: object) -> dict[str, Any]:
    _, output = plan(*arguments, "--json")
    found: dict[str, Any] = json.loads(output)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


def test_a_folder_has_weights_cache_and_parameters(folder: Path) -> None:
    found = planned(folder, "--context", "8k", "--batch", 2, "--gpu", "h100")
    assert found["schema"] == "tritter-mem.model/1"
    assert found["architecture"] == "llama"
    assert found["parameters"] == found["language_parameters"] == PARAMETERS
    assert found["weight_bytes"] == 2 * PARAMETERS
    assert found["kv_bytes_per_token"] == A_TOKEN
    assert found["kv_cache_bytes"] == 2 * 8192 * A_TOKEN
    parts = ("weight_bytes", "kv_cache_bytes", "context_bytes")
    assert found["total_bytes"] == sum(found[name] for name in parts)
    assert found["exceeds_budget"] is False


def test_the_file_itself_is_the_same(folder: Path) -> None:
    by_file = planned(folder / "config.json")
    assert by_file | {"name": ""} == planned(folder) | {"name": ""}


def test_what_surely_does_not_fit_exits_with_1(folder: Path) -> None:
    code, output = plan(folder, "--gpu", "rtx-4090", "--context", "128k")
    assert code == EXIT_DOES_NOT_FIT
    assert "does not fit: needs more than" in output


def test_what_may_fit_has_no_verdict(folder: Path) -> None:
    code, output = plan(folder, "--gpu", "h100")
    assert code == EXIT_OK
    assert "no verdict" in output
    assert "fits" not in output


def test_several_are_a_list(folder: Path) -> None:
    _, output = plan(folder, folder / "config.json", "--json")
    assert len(json.loads(output)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config", "tiny"), "found MODEL and --config; give one"),
        (("tiny",), "plan them apart"),
        (("--mode", "training"), "--mode: not for a model of Hugging Face"),
        (("--kv-dtype", "int2"), "--kv-dtype: found int2"),
        (("--max", "context"), "whose activations are not planned"),
        (("--context", "0"), "context: found"),
        (("--gpu", "voodoo"), "a card in the table"),
    ],
)
def test_what_cannot_be_is_one_clear_message(
    folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    code, output = plan(folder, *arguments)
    assert code == EXIT_USAGE
    assert words in " ".join(output.split())


def test_a_bundled_name_is_a_profile() -> None:
    _, output = plan("tiny", "--json")
    assert json.loads(output)["schema"] == "tritter-mem.result/1"


def test_a_folder_without_a_config_says_so(tmp_path: Path) -> None:
    code, output = plan(tmp_path)
    assert code == EXIT_USAGE
    assert "config.json" in output


def test_a_name_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    files = {"config.json": json.dumps(LLAMA).encode()}
    with HubServer({"meta-llama/Llama-3.1-8B": Repository(files)}) as server:
        hub_server.use(server, monkeypatch, tmp_path)
        found = planned("meta-llama/Llama-3.1-8B")
    assert found["parameters"] == PARAMETERS
