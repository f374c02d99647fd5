"""GGUF headers, versions 2 and 3: metadata, tensors and their sizes; no weight is read.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tritter_mem.errors import InputError
from tritter_mem.models.byte_source import ByteSource, Cursor, description
from tritter_mem.models.model_files import FolderFiles, ModelFiles, Progress, missing_file
from tritter_mem.text import printable


@dataclass(frozen=True, slots=True)
class GgmlType:
    """How ggml stores the numbers of a tensor.

    Attributes:
        name: as ggml calls it.
        block: elements that are stored together; a row has a multiple of them.
        block_bytes: that they take, scales included.
    """

    name: str
    block: int
    block_bytes: int


# GGMLQuantizationType and GGML_QUANT_SIZES in gguf/constants.py of the package gguf, 0.19.0.
GGML_TYPES = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    9: GgmlType("Q8_1", 32, 40),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    15: GgmlType("Q8_K", 256, 292),
    16: GgmlType("IQ2_XXS", 256, 66),
    17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98),
    19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18),
    21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82),
    23: GgmlType("IQ4_XS", 256, 136),
    24: GgmlType("I8", 1, 1),
    25: GgmlType("I16", 1, 2),
    26: GgmlType("I32", 1, 4),
    27: GgmlType("I64", 1, 8),
    28: GgmlType("F64", 1, 8),
    29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("BF16", 1, 2),
    34: GgmlType("TQ1_0", 256, 54),
    35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17),
    40: GgmlType("NVFP4", 64, 36),
    41: GgmlType("Q1_0", 128, 18),
}
"""By the number that files hold."""
_REMOVED = {4, 5, 31, 32, 33, 36, 37, 38}  # ggml.h: support has been removed from gguf files
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_MAX_DIMENSIONS = 4
_MAX_KEYS = 100_000
_MAX_TENSORS = 1_000_000
_MAX_KEPT = 4096
_MAX_NESTING = 4
_MAX_NAME = 65_535
_MAX_TEXT = 16 << 20
_MAX_LENGTH = 4_000_000
_LENGTH = struct.Struct("<Q")
_MAX_ELEMENTS = 1 << 63
_MAX_PARTS = 1000
_PART = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.gguf)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of metadata.

    Attributes:
        length: how many values it has.
        values: those of an array of at most 4,096 numbers or booleans; else empty.
    """

    length: int
    values: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in a GGUF file.

    Attributes:
        type: the name of its ggml type, such as Q4_K.
        shape: its dimensions as ggml orders them: the length of a row first.
        data_bytes: that it takes, without what aligns the next one.
    """

    type: str
    shape: tuple[int, ...]
    data_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file holds, or all files of a model that is split.

    Attributes:
        version: of the format.
        metadata: numbers, booleans, text and `GgufArray` by key.
        tensors: by name.
    """

    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.data_bytes for tensor in self.tensors.values())

    @property
    def bytes_by_type(self) -> dict[str, int]:
        """Bytes of the tensors of each ggml type, by its name."""
        found: Counter[str] = Counter()
        for tensor in self.tensors.values():
            found[tensor.type] += tensor.data_bytes
        return dict(found)

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(_product(tensor.shape) for tensor in self.tensors.values())


def read_gguf(source: ByteSource) -> GgufHeader:
    """Read the header of one GGUF file.

    Raises:
        InputError: the file cannot be read, is no GGUF file of version 2 or 3 in little-endian
            order, its header goes over a bound, or the file has fewer bytes than it describes.
    """
    return _Reader(source).header()


def read_gguf_file(path: Path, progress: Progress | None = None) -> GgufHeader:
    """Read the header of a GGUF file on disk, and of the parts beside it: see `read_gguf_model`."""
    return read_gguf_model(FolderFiles(path.parent), path.name, progress)


def read_gguf_model(files: ModelFiles, name: str, progress: Progress | None = None) -> GgufHeader:
    """Read the header of a GGUF file, and of its other parts where it is one of several.

    Args:
        files: where they are.
        name: of the file; `…-00001-of-00003.gguf`, or another part, stands for all three.
        progress: called after each file.

    Returns:
        The metadata of the first part, and the tensors of all.

    Raises:
        InputError: a part is missing, two parts hold the same tensor, or as `read_gguf`.
    """
    parts = gguf_parts(name)
    headers = []
    for done, part in enumerate(parts, start=1):
        source = files.open(part)
        if source is None:
            raise missing_file(files, part)
        with source:
            headers.append(read_gguf(source))
        if progress is not None:
            progress(part, done, len(parts))
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    if len(tensors) < sum(len(header.tensors) for header in headers):
        raise InputError(f"{files.label}: {printable(name, 100)}: two parts hold the same tensor")
    return replace(headers[0], tensors=tensors)


def gguf_parts(name: str) -> list[str]:
    """Names of all files of a model that one of them belongs to; itself where it is alone."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match[3]) <= _MAX_PARTS:
        return [name]
    return [f"{match[1]}{n:05}-of-{match[3]}{match[4]}" for n in range(1, int(match[3]) + 1)]


class _Reader:
    """Reads one header from its start to its end."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._cursor = Cursor(source)
        self._passed = 0

    def header(self) -> GgufHeader:
        version = self._version()
        tensor_count, key_count = self._unpack("<Q"), self._unpack("<Q")
        if tensor_count > _MAX_TENSORS or key_count > _MAX_KEYS:
            raise self._wrong(f"claims {tensor_count:,} tensors and {key_count:,} keys of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._text(_MAX_NAME, "a key")
            if key in metadata:
                raise self._wrong(f"metadata: the key {printable(key, 100)} is there twice")
            metadata[key] = self._value(self._unpack("<I"), key)
        tensors = self._tensors(tensor_count, self._alignment(metadata))
        return GgufHeader(version, metadata, tensors)

    def _version(self) -> int:
        start = self._cursor.look(64)
        if not start.startswith(b"GGUF"):
            raise self._wrong(f"no GGUF file: this is {description(start)}")
        self._cursor.skip(4)
        version = self._unpack("<I")
        if version and not version & 0xFFFF:
            raise self._wrong(
                "a big-endian GGUF file; convert it to little-endian: gguf-convert-endian, of the "
                "package gguf"
            )
        if version not in {2, 3}:
            raise self._wrong(f"GGUF version {version}, expected 2 or 3; convert the file again")
        return int(version)

    def _tensors(self, count: int, alignment: int) -> dict[str, GgufTensor]:
        tensors: dict[str, GgufTensor] = {}
        end = next_offset = 0
        for _ in range(count):
            name = self._text(_MAX_NAME, "a tensor's name")
            if name in tensors:
                raise self._wrong(f"the tensor {printable(name, 100)} is there twice")
            try:
                tensor, offset = self._tensor()
            except ValueError as error:
                raise self._wrong(f"tensor {printable(name, 100)}: {error}") from None
            if offset != next_offset:
                raise self._wrong(
                    f"tensor {printable(name, 100)}: is at {offset:,}, expected {next_offset:,}"
                )
            tensors[name], end = tensor, offset + tensor.data_bytes
            next_offset = _aligned(end, alignment)
        whole = self._cursor.position
        if tensors:
            whole = _aligned(whole, alignment) + end
        size = self._source.size
        if size is not None and size < whole:
            raise self._wrong(f"truncated: got {size:,} of {whole:,} bytes; download it again")
        return tensors

    def _tensor(self) -> tuple[GgufTensor, int]:
        """A tensor and its offset; ValueError where it contradicts itself."""
        dimensions = self._unpack("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"got {dimensions:,} dimensions, expected at most {_MAX_DIMENSIONS}")
        shape = struct.unpack(f"<{dimensions}Q", self._cursor.take(8 * dimensions))
        number, offset = self._unpack("<I"), self._unpack("<Q")
        if number not in GGML_TYPES:
            why = "was removed from ggml: convert the model again" if number in _REMOVED else (
                "is not known: a newer ggml wrote it, or the file is damaged"
            )  # fmt: skip
            raise ValueError(f"its type, number {number}, {why}")
        kind = GGML_TYPES[number]
        elements = _product(shape)
        if elements >= _MAX_ELEMENTS:
            raise ValueError("its shape has too many elements")
        if elements % kind.block or (shape and shape[0] % kind.block):
            raise ValueError(f"rows of {kind.name} are multiples of {kind.block}")
        return GgufTensor(kind.name, shape, elements // kind.block * kind.block_bytes), offset

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        found = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(found) is not int or not 0 < found <= _MAX_ALIGNMENT or found & (found - 1):
            raise self._wrong("general.alignment: expected a power of 2")
        return found

    def _value(self, kind: int, key: str) -> Any:
        """Read a value of metadata."""
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])
        if kind == _STRING:
            return self._text(_MAX_TEXT, printable(key, 100))
        if kind == _ARRAY:
            return self._array(key, 0)
        raise self._wrong(f"metadata: {printable(key, 100)} is of an unknown type, number {kind}")

    def _array(self, key: str, depth: int) -> GgufArray:
        kind, length = self._unpack("<I"), self._unpack("<Q")
        if kind not in _SCALARS:  # each is passed over by itself, which takes time
            self._passed += length
        if length > _MAX_LENGTH or self._passed > _MAX_LENGTH:
            raise self._wrong(f"metadata: {printable(key, 100)} claims {length:,} values")
        if depth > _MAX_NESTING:
            raise self._wrong(f"metadata: {printable(key, 100)} is nested too deeply")
        if kind in _SCALARS:
            return self._numbers(_SCALARS[kind], length)
        if kind == _STRING:
            self._skip_texts(length)
        elif kind == _ARRAY:
            for _ in range(length):
                self._array(key, depth + 1)
        else:
            raise self._wrong(f"metadata: {printable(key, 100)} is of an unknown type, {kind}")
        return GgufArray(length)

    def _numbers(self, code: str, length: int) -> GgufArray:
        if length > _MAX_KEPT:
            self._cursor.skip(struct.calcsize(code) * length)
            return GgufArray(length)
        packed = self._cursor.take(struct.calcsize(code) * length)
        return GgufArray(length, struct.unpack(f"<{length}{code[1]}", packed))

    def _skip_texts(self, count: int) -> None:
        """Pass over texts: a vocabulary has hundreds of thousands, so many a window at once."""
        while count:
            window = self._cursor.peek()
            offset, last = 0, len(window) - 8
            while count and offset <= last:
                offset += 8 + _LENGTH.unpack_from(window, offset)[0]
                count -= 1
            self._cursor.skip(offset)
            if count:
                self._cursor.skip(self._unpack("<Q"))
                count -= 1

    def _text(self, most: int, what: str) -> str:
        length = self._unpack("<Q")
        if length > most:
            raise self._wrong(f"{what} claims {length:,} bytes; at most {most:,}")
        return self._cursor.take(length).decode(errors="replace")

    def _unpack(self, code: str) -> Any:
        return struct.unpack(code, self._cursor.take(struct.calcsize(code)))[0]

    def _wrong(self, problem: str) -> InputError:
        return self._source.wrong(problem)


def _aligned(count: int, alignment: int) -> int:
    return -(-count // alignment) * alignment


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


# What `model_type` is, where ggml's name of an architecture is another one.
_MODEL_TYPES = {
    "command-r": "cohere", "deepseek2": "deepseek_v2", "ernie4_5-moe": "ernie4_5_moe",
    "falcon-h1": "falcon_h1", "gemma3": "gemma3_text", "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text", "glm4moe": "glm4_moe", "gpt-oss": "gpt_oss", "gptneox": "gpt_neox",
    "granitehybrid": "granitemoehybrid", "hunyuan-dense": "hunyuan_v1_dense",
    "hunyuan-moe": "hunyuan_v1_moe", "lfm2moe": "lfm2_moe", "llama4": "llama4_text",
    "minimax-m2": "minimax_m2", "nemotron_h_moe": "nemotron_h", "qwen2moe": "qwen2_moe",
    "qwen2vl": "qwen2_vl_text", "qwen3moe": "qwen3_moe", "qwen3next": "qwen3_next",
    "qwen3vl": "qwen3_vl_text", "qwen3vlmoe": "qwen3_vl_moe_text", "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text",
}  # fmt: skip
_SIGMOID_GATING = 2
_EXPERTS = {
    "deepseek_v2": "n_routed_experts", "deepseek_v3": "n_routed_experts",
    "glm4_moe": "n_routed_experts", "gpt_oss": "num_local_experts", "mixtral": "num_local_experts",
    "granitemoe": "num_local_experts", "llama4_text": "num_local_experts",
    "minimax_m2": "num_local_experts", "phimoe": "num_local_experts",
}  # fmt: skip
# Hugging Face's keys, each with that of the metadata, after the architecture's name and a dot.
_NUMBERS = {
    "hidden_size": "embedding_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "vocab_size": "vocab_size",
    "num_experts_per_tok": "expert_used_count",
    "n_shared_experts": "expert_shared_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "first_k_dense_replace": "leading_dense_block_count",
    "num_nextn_predict_layers": "nextn_predict_layers",
    "sliding_window": "attention.sliding_window",
    "num_kv_shared_layers": "attention.shared_kv_layers",
    "hidden_size_per_layer_input": "embedding_length_per_layer_input",
    "full_attention_interval": "full_attention_interval",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "final_logit_softcapping": "final_logit_softcapping",
    "attn_logit_softcapping": "attn_logit_softcapping",
}
_ROPE_SCALING = {
    "rope_type": "type",
    "factor": "factor",
    "original_max_position_embeddings": "original_context_length",
}


def config_keys(header: GgufHeader) -> dict[str, Any]:
    """Turn metadata of a GGUF file into keys as `config.json` has them.

    Args:
        header: of a language model.

    Returns:
        Plain values by key, absent where the file does not state them. A value that differs between
        layers is a list with one entry a layer. `model_type` is ggml's name where Hugging Face's
        is not known. Keys of state-space layers stay in the header's metadata.

    Raises:
        InputError: the metadata names no architecture, or one that is no language model.
    """
    return _ConfigKeys(header).keys()


class _ConfigKeys:
    """Reads the metadata of one architecture."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self._architecture = header.metadata.get("general.architecture")

    def keys(self) -> dict[str, Any]:
        name = self._architecture
        if not isinstance(name, str) or not name:
            raise InputError("the GGUF file names no general.architecture")
        if name == "clip":
            raise InputError("the GGUF file holds a vision tower alone; name the language model's")
        found: dict[str, Any] = {"model_type": self._model_type(name)}
        layers = self._layers()
        if layers is not None:
            found["num_hidden_layers"] = layers
        for key, source in _NUMBERS.items():
            value = self._number_or_list(source, layers)
            if value is not None:
                found[key] = value
        experts = self._get("expert_count")
        if experts:
            found[_EXPERTS.get(found["model_type"], "num_experts")] = experts
        if "vocab_size" not in found and (vocabulary := self._vocabulary()):
            found["vocab_size"] = vocabulary
        found["tie_word_embeddings"] = "output.weight" not in self._header.tensors
        self._heads(found)
        self._windows(found, layers)
        self._rope(found)
        return found

    def _model_type(self, name: str) -> str:
        if name == "llama" and self._get("expert_count"):
            return "mixtral"
        if name == "deepseek2" and self._get("expert_gating_func") == _SIGMOID_GATING:
            return "deepseek_v3"
        return _MODEL_TYPES.get(name, name)

    def _layers(self) -> int | None:
        """Layers of the language model: ggml counts those that predict further tokens too."""
        blocks, further = self._get("block_count"), self._get("nextn_predict_layers") or 0
        return blocks - further if blocks is not None and blocks > further else blocks

    def _get(self, key: str) -> int | None:
        """A whole number that is not negative."""
        found = self._header.metadata.get(f"{self._architecture}.{key}")
        return found if type(found) is int and 0 <= found < 1 << 53 else None

    def _number_or_list(self, key: str, layers: int | None) -> Any:
        found = self._header.metadata.get(f"{self._architecture}.{key}")
        if not isinstance(found, GgufArray):
            return found if type(found) is float else self._get(key)
        values = found.values[:layers]
        if not values or not all(type(value) is int for value in values):
            return None
        return values[0] if len(set(values)) == 1 else list(values)

    def _vocabulary(self) -> int | None:
        tokens = self._header.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, GgufArray):
            return tokens.length
        table = self._header.tensors.get("token_embd.weight")
        return table.shape[-1] if table and table.shape else None

    def _heads(self, found: dict[str, Any]) -> None:
        """Sizes of heads, where keys and values, or kinds of layers, have different ones."""
        rope = self._get("rope.dimension_count")
        if "kv_lora_rank" in found:
            key = self._get("attention.key_length_mla") or self._get("attention.key_length")
            value = self._get("attention.value_length_mla") or self._get("attention.value_length")
            found.pop("head_dim", None)
            if key and rope and value:
                found["qk_rope_head_dim"] = rope
                found["qk_nope_head_dim"] = key - rope
                found["v_head_dim"] = value
            # ggml stores the compressed cache as one head; the model has as many as of queries.
            if "num_attention_heads" in found:
                found["num_key_value_heads"] = found["num_attention_heads"]
            return
        value = self._get("attention.value_length")
        if value is not None and value != found.get("head_dim", value):
            found["v_head_dim"] = value
        if windowed := self._get("attention.key_length_swa"):
            if windowed != found.get("head_dim", windowed):
                found["global_head_dim"] = found["head_dim"]
            found["head_dim"] = windowed

    def _windows(self, found: dict[str, Any], layers: int | None) -> None:
        """Which layers attend to a window only."""
        pattern = self._header.metadata.get(
            f"{self._architecture}.attention.sliding_window_pattern"
        )
        if isinstance(pattern, GgufArray) and len(pattern.values) >= (layers or 1):
            found["layer_types"] = [
                "sliding_attention" if value else "full_attention"
                for value in pattern.values[:layers]
            ]
        elif type(pattern) is int:
            found["sliding_window_pattern"] = pattern

    def _rope(self, found: dict[str, Any]) -> None:
        scaling = {
            key: value
            for key, source in _ROPE_SCALING.items()
            if isinstance(
                value := self._header.metadata.get(f"{self._architecture}.rope.scaling.{source}"),
                int | float | str,
            )
        }
        if scaling.get("rope_type", "none") != "none":
            found["rope_scaling"] = scaling
