"""GGUF headers: read back as written, turned into configuration keys, refused where wrong."""

import math
import struct
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import header_files as files
from tritter_mem.errors import InputError
from tritter_mem.models.byte_source import LocalFile
from tritter_mem.models.gguf import (
    GGML_TYPES,
    GgufArray,
    GgufHeader,
    GgufTensor,
    config_keys,
    gguf_parts,
    read_gguf,
    read_gguf_file,
)

MiB = 1 << 20
LLAMA = {"general.architecture": files.string("llama")}


def read(content: bytes) -> GgufHeader:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(content)
        with LocalFile(path, label="model.gguf") as source:
            return read_gguf(source)


def test_values_of_all_kinds_are_read() -> None:
    metadata = {
        "u8": files.number(0, "B", 255),
        "i8": files.number(1, "b", -1),
        "u16": files.number(2, "H", 65535),
        "i16": files.number(3, "h", -2),
        "u32": files.u32(7),
        "i32": files.number(5, "i", -3),
        "f32": files.number(6, "f", 0.5),
        "bool": files.number(7, "?", True),
        "text": files.string("é"),
        "u64": files.number(10, "Q", 1 << 63),
        "i64": files.number(11, "q", -4),
        "f64": files.number(12, "d", 1e300),
        "numbers": files.u32s(1, 2, 3),
        "texts": files.strings("a", "", "ccc"),
        "many": files.array(0, [b"\1"] * 5000),
        "nested": files.array(9, [files.u32s(1)[4:], files.strings("a", "b")[4:]]),
        "last": files.u32(9),
    }
    found = read(files.gguf(metadata)).metadata
    assert list(found) == list(metadata)
    assert found["u8"] == 255
    assert [found[f"i{bits}"] for bits in (8, 16, 32, 64)] == [-1, -2, -3, -4]
    assert (found["u16"], found["u64"], found["f32"], found["f64"]) == (65535, 1 << 63, 0.5, 1e300)
    assert found["bool"] is True
    assert found["text"] == "é"
    assert found["numbers"] == GgufArray(3, (1, 2, 3))
    assert found["texts"] == GgufArray(3)
    assert found["many"] == GgufArray(5000)
    assert found["nested"] == GgufArray(2)
    assert found["last"] == 9


# GGMLQuantizationType and GGML_QUANT_SIZES of gguf/constants.py, package gguf 0.19.0 of PyPI: the
# number of a type, elements of a block, bytes of a block.
TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "F64": (28, 1, 8),
    "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4), "I64": (27, 1, 8),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34), "Q8_1": (9, 32, 40),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "Q8_K": (15, 256, 292),
    "IQ1_S": (19, 256, 50), "IQ1_M": (29, 256, 56),
    "IQ2_XXS": (16, 256, 66), "IQ2_XS": (17, 256, 74), "IQ2_S": (22, 256, 82),
    "IQ3_XXS": (18, 256, 98), "IQ3_S": (21, 256, 110),
    "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136),
    "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36), "Q1_0": (41, 128, 18),
}  # fmt: skip


def test_types_are_those_of_the_package_gguf() -> None:
    assert {t.name: (number, t.block, t.block_bytes) for number, t in GGML_TYPES.items()} == TYPES


def test_tensors_have_the_bytes_of_their_types() -> None:
    tensors = {
        "token_embd.weight": ("Q6_K", [512, 3], 6 * 210),
        "a": ("Q4_K", [256, 2, 2], 4 * 144),
        "norm": ("F32", [5], 20),
        "scalar": ("F16", [], 2),
        "experts": ("MXFP4", [32, 2, 3], 6 * 17),
    }
    metadata = {**LLAMA, "general.alignment": files.u32(64)}
    found = read(files.gguf(metadata, tensors, alignment=64, version=2))
    assert found.version == 2
    assert {name: t.data_bytes for name, t in found.tensors.items()} == {
        name: size for name, (_, _, size) in tensors.items()
    }
    assert found.tensors["a"] == GgufTensor("Q4_K", (256, 2, 2), 576)
    assert found.weight_bytes == 1260 + 576 + 20 + 2 + 102
    assert found.parameters == 1536 + 1024 + 5 + 1 + 192
    assert found.bytes_by_type["MXFP4"] == 102


def test_a_vocabulary_wider_than_a_window_is_passed_over() -> None:
    words = ["w" * (n % 40) for n in range(20_000)]
    metadata = {"tokens": files.strings(*words), "after": files.u32(3)}
    found = read(files.gguf(metadata)).metadata
    assert found == {"tokens": GgufArray(20_000), "after": 3}


ONE = files.gguf(LLAMA, {"a": ("F32", [8], 32)})
BIG_ENDIAN = b"GGUF" + struct.pack(">IQQ", 3, 0, 0)


def head(tensors: int, keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def tensor(name: str, dims: list[int], number: int, offset: int = 0) -> bytes:
    return files.text(name) + struct.pack(
        f"<I{len(dims)}QIQ", len(dims), *dims, number, offset
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no GGUF file: this is an empty file"),
        (b"GG", "no GGUF file: this is a file that starts with 47 47"),
        (b"GGUF", "truncated: the file ends at byte 4"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "no GGUF file: this is a Git LFS pointer",
        ),
        (b"<html>", "this is a web page"),
        (BIG_ENDIAN, "a big-endian GGUF file; convert it to little-endian: gguf-convert-endian"),
        (b"GGUF" + struct.pack("<IIQ", 1, 0, 0), "GGUF version 1, expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), "GGUF version 0"),
        (head(10**18, 0), "claims 1,000,000,000,000,000,000 tensors"),
        (head(0, 10**18), "1,000,000,000,000,000,000 keys of metadata"),
        (head(0, 1, struct.pack("<Q", 10**18)), "a key claims 1,000,000,000,000,000,000 bytes"),
        (head(0, 1, files.text("k") + struct.pack("<IQ", 8, 10**18)), "k claims 1,0.* bytes"),
        (head(0, 1, files.text("k") + struct.pack("<IIQ", 9, 4, 10**18)), "k claims 1,0.* values"),
        (head(0, 1, files.text("k") + struct.pack("<IIQ", 9, 0, 10**6)), "truncated"),
        (head(0, 1, files.text("k") + struct.pack("<IIQ", 9, 8, 9) + b"\xff" * 8), "truncated"),
        (head(0, 1, files.text("k") + struct.pack("<II", 13, 0)), "of an unknown type, number 13"),
        (head(0, 1, files.text("k") + b"\x09\0\0\0" + b"\x09\0\0\0\1\0\0\0\0\0\0\0" * 9), "nested"),
        (
            head(
                0,
                1,
                files.text("k")
                + struct.pack("<IIQ", 9, 9, 3_000_000)
                + struct.pack("<IQ", 8, 1_000_001),
            ),
            "k claims 1,000,001 values",
        ),
        (head(0, 2, (files.text("k") + files.u32(1)) * 2), "the key k is there twice"),
        (head(1, 0, tensor("a", [1] * 5, 0)), "tensor a: got 5 dimensions, expected at most 4"),
        (head(1, 0, tensor("a", [8], 4)), "number 4, was removed from ggml: convert the model"),
        (head(1, 0, tensor("a", [8], 77)), "number 77, is not known"),
        (head(1, 0, tensor("a", [8], 2)), "rows of Q4_0 are multiples of 32"),
        (head(1, 0, tensor("a", [16, 2], 2)), "rows of Q4_0 are multiples of 32"),
        (head(1, 0, tensor("a", [], 2)), "rows of Q4_0 are multiples of 32"),
        (head(1, 0, tensor("a", [1 << 40, 1 << 40], 0)), "too many elements"),
        (head(1, 0, tensor("a", [8], 0, 32)), "tensor a: is at 32, expected 0"),
        (head(2, 0, tensor("a", [0], 0) * 2), "the tensor a is there twice"),
        (ONE[:-1], r"truncated: got \d+ of \d+ bytes; download it again"),
        (files.gguf({"general.alignment": files.u32(33)}), "general.alignment: expected a power"),
        (files.gguf({"general.alignment": files.string("8")}), "general.alignment: expected a"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(content)
    assert str(caught.value).startswith("model.gguf: ")


def test_a_file_of_zeros_as_long_as_claimed_is_read_within_the_bound(tmp_path: Path) -> None:
    """A sparse file of a terabyte, whose vocabulary is said to be of empty words."""
    path = tmp_path / "model.gguf"
    path.write_bytes(head(0, 1, files.text("k") + struct.pack("<IIQ", 9, 9, 4_000_000)))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with (
        LocalFile(path, most_bytes=MiB) as source,
        pytest.raises(InputError, match=r"more than 1\.0 MiB"),
    ):
        read_gguf(source)


NUMBERS = st.integers(0, (1 << 32) - 1)
VALUES = st.one_of(
    NUMBERS.map(lambda n: (files.u32(n), n)),
    st.text(max_size=20).map(lambda t: (files.string(t), t)),
    st.lists(NUMBERS, max_size=5).map(lambda n: (files.u32s(*n), GgufArray(len(n), tuple(n)))),
    st.lists(st.text(max_size=9), max_size=5).map(
        lambda t: (files.strings(*t), GgufArray(len(t)))
    ),
)  # fmt: skip
KEYS = st.text(min_size=1, max_size=20).filter(lambda key: key != "general.alignment")
SHAPES = st.lists(st.integers(0, 5), max_size=3)


@settings(deadline=None)
@given(
    st.dictionaries(KEYS, VALUES, max_size=5),
    st.dictionaries(st.text(max_size=20), st.tuples(st.sampled_from(list(GGML_TYPES)), SHAPES)),
)
def test_valid_headers_are_read_back(metadata: dict[str, Any], described: dict[str, Any]) -> None:
    tensors = {}
    for name, (number, rest) in described.items():
        kind = GGML_TYPES[number]
        shape = [kind.block * 2, *rest]
        tensors[name] = (kind.name, shape, 2 * math.prod(rest) * kind.block_bytes)
    found = read(files.gguf({key: packed for key, (packed, _) in metadata.items()}, tensors))
    assert found.metadata == {key: value for key, (_, value) in metadata.items()}
    assert {
        name: (t.type, list(t.shape), t.data_bytes) for name, t in found.tensors.items()
    } == tensors
    assert found.weight_bytes == sum(size for _, _, size in tensors.values())


FULL = {
    **LLAMA,
    "llama.block_count": files.u32(2),
    "llama.attention.head_count_kv": files.u32s(2, 1),
    "llama.rope.freq_base": files.number(6, "f", 1e6),
    "tokenizer.ggml.tokens": files.strings("a", "b"),
}


@settings(deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused_within_bounds(data: st.DataObject) -> None:
    content = bytearray(files.gguf(FULL, {"a": ("Q4_0", [32, 2], 36), "b": ("F32", [3], 12)}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))])
    tracemalloc.start()
    try:
        header = read(damaged)
        assert header.weight_bytes <= len(damaged)
        assert config_keys(header)
    except InputError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * MiB


def keys(architecture: str, tensors: Any = None, **values: bytes) -> dict[str, Any]:
    """Configuration keys of an architecture's metadata; two underscores stand for a dot."""
    metadata = {"general.architecture": files.string(architecture)}
    for key, value in values.items():
        metadata[f"{architecture}.{key.replace('__', '.')}"] = value
    return config_keys(read(files.gguf(metadata, tensors)))


def test_keys_of_a_dense_model() -> None:
    metadata = {
        **FULL,
        "llama.embedding_length": files.u32(4096),
        "llama.feed_forward_length": files.u32(14336),
        "llama.context_length": files.u32(8192),
        "llama.attention.head_count": files.u32(32),
        "llama.attention.head_count_kv": files.u32(8),
        "llama.attention.key_length": files.u32(128),
        "llama.attention.value_length": files.u32(128),
        "llama.rope.scaling.type": files.string("yarn"),
        "llama.rope.scaling.factor": files.number(6, "f", 4.0),
        "llama.rope.scaling.original_context_length": files.u32(2048),
    }
    assert config_keys(read(files.gguf(metadata, {"output.weight": ("F32", [8], 32)}))) == {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 1e6,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 2048,
        },
        "vocab_size": 2,
        "tie_word_embeddings": False,
    }


def test_heads_by_layer_are_a_list_and_equal_ones_a_number() -> None:
    found = keys("qwen2", block_count=files.u32(3), attention__head_count_kv=files.u32s(4, 2, 4))
    assert found["num_key_value_heads"] == [4, 2, 4]
    found = keys("qwen2", block_count=files.u32(2), attention__head_count_kv=files.u32s(4, 4))
    assert found["num_key_value_heads"] == 4


def test_vocabulary_by_key_by_tokens_or_by_table() -> None:
    assert keys("qwen2", vocab_size=files.u32(9))["vocab_size"] == 9
    assert config_keys(read(files.gguf(FULL)))["vocab_size"] == 2
    table = {"token_embd.weight": ("F32", [8, 5], 160)}
    assert keys("qwen2", table)["vocab_size"] == 5
    assert "vocab_size" not in keys("qwen2")


def test_keys_of_experts() -> None:
    found = keys("llama", expert_count=files.u32(8), expert_used_count=files.u32(2))
    assert found["model_type"] == "mixtral"
    assert (found["num_local_experts"], found["num_experts_per_tok"]) == (8, 2)
    found = keys("qwen3moe", expert_count=files.u32(128), expert_feed_forward_length=files.u32(768))
    assert found["model_type"] == "qwen3_moe"
    assert (found["num_experts"], found["moe_intermediate_size"]) == (128, 768)


def test_keys_of_latent_attention() -> None:
    found = keys(
        "deepseek2",
        expert_gating_func=files.u32(2),
        attention__head_count=files.u32(128),
        attention__head_count_kv=files.u32(1),
        attention__kv_lora_rank=files.u32(512),
        attention__q_lora_rank=files.u32(1536),
        attention__key_length=files.u32(576),
        attention__value_length=files.u32(512),
        attention__key_length_mla=files.u32(192),
        attention__value_length_mla=files.u32(128),
        rope__dimension_count=files.u32(64),
    )
    assert found["model_type"] == "deepseek_v3"
    assert (found["kv_lora_rank"], found["q_lora_rank"]) == (512, 1536)
    assert (found["qk_nope_head_dim"], found["qk_rope_head_dim"]) == (128, 64)
    assert (found["v_head_dim"], found["num_key_value_heads"]) == (128, 128)
    assert "head_dim" not in found


def test_layers_that_predict_further_tokens_are_not_the_language_models() -> None:
    found = keys(
        "glm4moe",
        block_count=files.u32(3),
        nextn_predict_layers=files.u32(1),
        attention__head_count_kv=files.u32s(8, 4, 2),
    )
    assert (found["num_hidden_layers"], found["num_nextn_predict_layers"]) == (2, 1)
    assert found["num_key_value_heads"] == [8, 4]


def test_windows_by_layer_and_their_heads() -> None:
    found = keys(
        "gemma4",
        block_count=files.u32(3),
        attention__sliding_window=files.u32(1024),
        attention__sliding_window_pattern=files.bools(True, True, False),
        attention__key_length=files.u32(512),
        attention__key_length_swa=files.u32(256),
    )
    assert found["sliding_window"] == 1024
    assert found["layer_types"] == ["sliding_attention"] * 2 + ["full_attention"]
    assert (found["head_dim"], found["global_head_dim"]) == (256, 512)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "names no general.architecture"),
        ({"general.architecture": files.u32(3)}, "names no general.architecture"),
        ({"general.architecture": files.string("clip")}, "a vision tower alone"),
    ],
)
def test_a_file_of_no_language_model_has_no_keys(metadata: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_keys(read(files.gguf(metadata)))


def test_values_of_the_wrong_kind_are_left_out() -> None:
    found = keys("llama", block_count=files.string("32"), embedding_length=files.bools(True))
    assert found == {"model_type": "llama", "tie_word_embeddings": True}


def test_parts_of_a_model_are_read_together(tmp_path: Path) -> None:
    names = gguf_parts("sub/big-00002-of-00003.gguf")
    assert names == [f"sub/big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    (tmp_path / "sub").mkdir()
    for n, name in enumerate(names):
        metadata = FULL if n == 0 else {}
        (tmp_path / name).write_bytes(files.gguf(metadata, {f"t{n}": ("F32", [8], 32)}))
    seen: list[tuple[str, int, int]] = []
    found = read_gguf_file(tmp_path / names[1], lambda *done: seen.append(done))
    assert list(found.tensors) == ["t0", "t1", "t2"]
    assert found.metadata["llama.block_count"] == 2
    assert seen[-1] == ("big-00003-of-00003.gguf", 3, 3)
    (tmp_path / names[2]).write_bytes(files.gguf({}, {"t0": ("F32", [8], 32)}))
    with pytest.raises(InputError, match="two parts hold the same tensor"):
        read_gguf_file(tmp_path / names[0])
    (tmp_path / names[2]).unlink()
    with pytest.raises(InputError, match=r"no such file: big-00003-of-00003.gguf; did you mean"):
        read_gguf_file(tmp_path / names[0])


def test_a_file_alone_is_its_only_part() -> None:
    assert gguf_parts("model.gguf") == ["model.gguf"]
    assert gguf_parts("model-00001-of-99999.gguf") == ["model-00001-of-99999.gguf"]
