"""Models by name: what `plan` says of a folder, a file, a name on the Hub, a profile's `model`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.models import hub_server
from tests.models.header_files import gguf, string, u32
from tests.models.hub_server import HubServer, Repository
from tritter_mem.cli.main import app
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_USAGE
from tritter_mem.models import transformers_run

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


def weights_of(record: dict[str, Any]) -> int:
    components = record["planned"]["components"]
    return int(components["weights_bytes"] + components["embeddings_bytes"])


def test_a_folder_has_weights_cache_and_parameters(folder: Path) -> None:
    found = planned(folder, "--context", "8k", "--batch", 2, "--gpu", "h100")
    model = found["model"]
    assert found["schema"] == "tritter-mem.result/1"
    assert model["architecture"] == "llama"
    assert model["parameters"] == model["language_parameters"] == PARAMETERS
    assert model["weight_bytes"] == weights_of(found) == 2 * PARAMETERS
    assert model["kv_bytes_per_token"] == A_TOKEN
    tokens = found["planned"]["components"]["kv_cache_bytes"] / (2 * A_TOKEN)
    assert 8192 - 32 <= tokens <= 8192  # the peak may be before the last token


def test_the_file_itself_is_the_same(folder: Path) -> None:
    by_folder, by_file = planned(folder), planned(folder / "config.json")
    assert by_file["planned"] == by_folder["planned"]
    assert by_file["profile"]["name"] == by_folder["profile"]["name"] == folder.name


def test_an_option_means_what_an_argument_means(folder: Path) -> None:
    assert planned("--config", folder)["planned"] == planned(folder)["planned"]


def test_what_does_not_fit_exits_with_1(folder: Path) -> None:
    code, output = plan(folder, "--gpu", "rtx-4090", "--context", "128k")
    assert code == EXIT_DOES_NOT_FIT
    assert "does not fit: needs" in output


def test_several_are_compared_with_profiles_of_the_bundled_model(folder: Path) -> None:
    _, output = plan(folder, "tiny", "--json")
    assert [record["model"]["architecture"] for record in json.loads(output)] == [
        "llama",
        "tritter",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config", "tiny"), "MODEL and --config mean the same"),
        (("--kv-dtype", "int2"), "--kv-dtype: got 'int2', expected auto"),
        (("--context", "0"), "--context: got"),
        (("--gpu", "voodoo"), "is not a known card"),
        (("--set", "weights.format=int4"), "unknown key"),
        (("--set", "weights.quantization=int4"), "expected auto, none, bitsandbytes-int8"),
        (("--checkpoint", "segments"), "expected none or every-layer"),
        (("--checkpoint", "segments:8"), "--checkpoint: a named model takes none or every-layer"),
        (("--set", "workload.new_tokens=9999"), "fewer than context"),
    ],
)
def test_what_cannot_be_is_one_clear_message(
    folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    code, output = plan(folder, *arguments)
    assert code == EXIT_USAGE
    assert words in " ".join(output.split())
    assert output.count("error: ") == 1


def test_a_profile_names_its_model_by_a_path_beside_it(folder: Path) -> None:
    profile = folder / "mine.yaml"
    profile.write_text("model: config.json\nworkload: {context: 8k}\ngpu: {name: h100}\n")
    found = planned(profile)
    assert found["model"]["parameters"] == PARAMETERS
    assert found["profile"]["name"] == "mine"


def test_a_profile_holds_the_keys_themselves(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(json.dumps({"model": LLAMA, "gpu": {"name": "h100"}}))
    assert planned(profile)["model"]["parameters"] == PARAMETERS


def test_a_profile_names_a_bundled_model(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("model: 7b\n")
    assert planned(profile)["model"]["parameters"] == planned("7b")["model"]["parameters"]


def test_a_changed_configuration_is_another_profile(folder: Path, tmp_path: Path) -> None:
    before = planned("--config", folder)["profile_hash"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(LLAMA | {"intermediate_size": 14080}))
    assert planned(other)["profile_hash"] != before
    (other / "config.json").write_text(json.dumps(LLAMA))
    transformers_run._FOUND.clear()  # as in another process
    assert planned(other)["profile_hash"] == before


def test_weights_are_stored_as_the_profile_says(folder: Path) -> None:
    whole, quantised = (
        planned(folder, "--set", f"weights.quantization={name}")["model"]["weight_bytes"]
        for name in ("none", "bitsandbytes-nf4-double")
    )
    assert whole == 2 * PARAMETERS
    assert 0.25 * whole < quantised < 0.4 * whole  # embedding and output projection stay


def test_weights_that_are_dequantised_are_said_to_be(folder: Path) -> None:
    section = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": section}))
    said = "transformers dequantises its weights, which the checkpoint stores in"
    for card, dequantised in (("a100-80gb", True), ("h100", False)):
        _, output = plan(folder, "--gpu", card)
        assert (said in " ".join(output.split())) is dequantised
        assert planned(folder, "--gpu", card)["model"]["dequantises"] is dequantised


def a_gguf_file(folder: Path) -> tuple[Path, int]:
    """A small model, its embedding in Q6_K and a matrix in Q4_K; the bytes of its weights."""
    metadata = {
        "general.architecture": string("llama"),
        "llama.embedding_length": u32(256),
        "llama.block_count": u32(1),
        "llama.feed_forward_length": u32(512),
        "llama.attention.head_count": u32(4),
        "llama.attention.head_count_kv": u32(2),
        "llama.vocab_size": u32(1024),
    }
    tensors = {
        "token_embd.weight": ("Q6_K", (256, 1024), 1024 * 210),
        "blk.0.attn_q.weight": ("Q4_K", (256, 256), 256 * 144),
        "output_norm.weight": ("F32", (256,), 1024),
    }
    path = folder / "model-Q4_K_M.gguf"
    path.write_bytes(gguf(metadata, tensors))
    return path, sum(size for _, _, size in tensors.values())


def test_a_gguf_file_is_planned_as_llama_cpp_runs_it(tmp_path: Path) -> None:
    path, stored = a_gguf_file(tmp_path)
    found = planned(path, "--context", "4k")
    assert found["model"]["runtime"] == "llama.cpp"
    assert found["model"]["weight_bytes"] == weights_of(found) == stored
    assert found["planned"]["components"]["kv_cache_bytes"] == 4096 * 2 * 2 * 64 * 2
    assert "compute buffers are not planned" in found["planned"]["lower_bound_reason"]
    code, output = plan(path)
    assert "llama as llama.cpp runs it" in " ".join(output.split())
    assert code == 0


def test_a_gguf_file_s_model_is_planned_as_transformers_dequantises_it(tmp_path: Path) -> None:
    path, stored = a_gguf_file(tmp_path)
    found = planned(path, "--set", "weights.quantization=none")
    assert found["model"]["runtime"] == "transformers"
    assert found["planned"].get("lower_bound_reason") is None
    assert weights_of(found) == 2 * found["model"]["parameters"] > stored


def test_a_bundled_name_is_a_profile() -> None:
    assert planned("tiny")["model"]["architecture"] == "tritter"


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
    assert found["model"]["parameters"] == PARAMETERS
