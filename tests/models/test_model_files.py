"""Folders of models: their configuration and the bytes of their weights, or what is wrong."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.models.header_files import entry, safetensors
from tritter_mem.errors import InputError
from tritter_mem.models.model_files import (
    Checkpoint,
    FolderFiles,
    close_names,
    missing_file,
    read_checkpoint,
    read_config_file,
    read_model_config,
)
from tritter_mem.models.safetensors_header import StoredTensor

CONFIG = {"model_type": "llama", "hidden_size": 8}


def write(folder: Path, **files: Any) -> FolderFiles:
    """Write files named by keywords; `__` stands for a dot, `_of_` for the parts of a model."""
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return FolderFiles(folder)


def test_configuration_with_and_without_quantisation(tmp_path: Path) -> None:
    files = write(tmp_path, config__json=CONFIG)
    found = read_model_config(files)
    assert found.config == CONFIG
    assert found.quantization is None
    write(tmp_path, hf_quant_config__json={"quantization": {"quant_algo": "FP8"}})
    assert read_model_config(files).quantization == {"quantization": {"quant_algo": "FP8"}}
    assert read_config_file(tmp_path / "config.json") == CONFIG


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.gguf", "no config.json, but GGUF files; name one of them, such as model.gguf"),
        ("params.json", "no config.json, but params.json: the original format"),
        ("adapter_config.json", "but a LoRA adapter; name the model that it adapts"),
        ("model_index.json", "this is a diffusers pipeline"),
        ("README.md", "no config.json, expected a model as Hugging Face stores it, or a GGUF"),
    ],
)
def test_a_folder_without_a_configuration_says_what_it_has(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        read_model_config(FolderFiles(tmp_path))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such folder"):
        read_model_config(FolderFiles(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be listed: Not a directory"):
        read_model_config(FolderFiles(tmp_path / "file"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {}}, "tokenizer_config"),
        ({"weight_map": {}}, "a model.safetensors.index.json"),
        ({"peft_type": "LORA"}, "of a LoRA adapter; name the model that it adapts"),
        ({"image_processor_type": "X"}, "a preprocessor_config.json"),
        ({"_from_model_config": True}, "a generation_config.json"),
        ({"_diffusers_version": "1"}, "of a diffusers pipeline"),
    ],
)
def test_another_file_of_a_model_is_named(tmp_path: Path, content: Any, what: str) -> None:
    write(tmp_path, file__json=content)
    with pytest.raises(InputError, match=f"no model's config.json: this is .*{what}"):
        read_config_file(tmp_path / "file.json")


def test_a_configuration_may_name_its_tokenizer(tmp_path: Path) -> None:
    write(tmp_path, file__json={**CONFIG, "tokenizer_class": "LlamaTokenizer"})
    assert read_config_file(tmp_path / "file.json")["hidden_size"] == 8


def test_a_configuration_of_a_gigabyte_or_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 30)
    with pytest.raises(InputError, match=r"got 1\.00 GiB, expected at most 16\.0 MiB"):
        read_config_file(tmp_path / "large")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match="got a pipe"):
        read_model_config(FolderFiles(tmp_path))


ONE = safetensors({"a": entry("BF16", [4, 2], 0, 16), "b": entry("F32", [1], 16, 20)}, 20)
TWO = safetensors({"c": entry("U8", [5], 0, 5)}, 5)
INDEX = {
    "metadata": {"total_size": 26},
    "weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"},
}


def test_weights_of_one_file(tmp_path: Path) -> None:
    found = read_checkpoint(write(tmp_path, model__safetensors=ONE))
    tensors = {"a": StoredTensor("BF16", (4, 2), 16), "b": StoredTensor("F32", (1,), 4)}
    assert found == Checkpoint(20, tensors, ("model.safetensors",), from_headers=True)


def test_weights_of_shards_by_their_headers(tmp_path: Path) -> None:
    files = write(tmp_path, model__safetensors__index__json=INDEX)
    (tmp_path / "1.safetensors").write_bytes(ONE)
    (tmp_path / "2.safetensors").write_bytes(TWO)
    seen: list[tuple[str, int, int]] = []
    found = read_checkpoint(files, lambda *done: seen.append(done))
    assert found is not None
    assert found.from_headers
    assert found.weight_bytes == 25  # and not what the index says
    assert set(found.tensors) == {"a", "b", "c"}
    assert seen == [("1.safetensors", 1, 2), ("2.safetensors", 2, 2)]


def test_weights_by_the_index_where_a_shard_is_missing(tmp_path: Path) -> None:
    files = write(tmp_path, model__safetensors__index__json=INDEX)
    (tmp_path / "1.safetensors").write_bytes(ONE)
    shards = ("1.safetensors", "2.safetensors")
    assert read_checkpoint(files) == Checkpoint(26, {}, shards, from_headers=False)
    write(tmp_path, model__safetensors__index__json={"weight_map": INDEX["weight_map"]})
    with pytest.raises(InputError, match=r"files that it names are missing, .* no total_size"):
        read_checkpoint(files)


def test_a_shard_that_is_wrong_is_named(tmp_path: Path) -> None:
    files = write(tmp_path, model__safetensors__index__json=INDEX)
    (tmp_path / "1.safetensors").write_bytes(ONE)
    (tmp_path / "2.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"2\.safetensors: .* Git LFS pointer"):
        read_checkpoint(files)


def test_a_folder_without_weights_has_none(tmp_path: Path) -> None:
    assert read_checkpoint(write(tmp_path, config__json=CONFIG)) is None


def test_an_index_of_too_many_files_is_refused(tmp_path: Path) -> None:
    weight_map = {str(n): f"{n}.safetensors" for n in range(10_001)}
    files = write(tmp_path, model__safetensors__index__json={"weight_map": weight_map})
    with pytest.raises(InputError, match="names 10,001 files; at most 10,000"):
        read_checkpoint(files)


def test_a_missing_file_comes_with_those_that_may_be_meant(tmp_path: Path) -> None:
    for n in range(7):
        (tmp_path / f"m-Q{n}.gguf").touch()
    files = FolderFiles(tmp_path)
    assert "no such file: M-q3.gguf; did you mean m-Q3.gguf" in str(
        missing_file(files, "M-q3.gguf")
    )
    shown = str(missing_file(files, "something_else_altogether.gguf"))
    assert shown.endswith("; there are m-Q0.gguf, m-Q1.gguf, m-Q2.gguf, m-Q3.gguf, m-Q4.gguf, …")
    assert str(missing_file(files, "none")).endswith("no such file: none")
    assert close_names("abc", []) == []
