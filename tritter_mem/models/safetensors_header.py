"""Tensors of safetensors files by their headers; no weight is read.

The format: https://huggingface.co/docs/safetensors/index#format. It is read here, not by the
safetensors package, since that maps files into memory and reads none over HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from tritter_mem.models.byte_source import ByteSource, Cursor, description
from tritter_mem.models.json_objects import parse_object, read_object
from tritter_mem.text import printable

MAX_HEADER_BYTES = 100_000_000
MAX_HEADER_VALUES = 4_000_000
MAX_INDEX_BYTES = 100_000_000
DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of an element, by the name of its type; from safetensors/src/tensor.rs, version 0.8."""
_MAX_ELEMENTS = 1 << 63


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        dtype: as the format calls it, such as BF16.
        shape: its dimensions.
        data_bytes: that it takes in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    data_bytes: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a safetensors file holds.

    Attributes:
        tensors: by name, in the order of their data.
        metadata: text by key, such as `format`.
        data_bytes: of all tensors.
    """

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    data_bytes: int


@dataclass(frozen=True)
class ShardIndex:
    """A `model.safetensors.index.json`.

    Attributes:
        weight_map: the file that holds each tensor, by the tensor's name.
        total_bytes: of all tensors as the file says it; None where it does not.
    """

    weight_map: Mapping[str, str]
    total_bytes: int | None

    @property
    def shards(self) -> list[str]:
        """Names of the files, relative to the index, each once."""
        return sorted(set(self.weight_map.values()))


def read_safetensors(source: ByteSource) -> SafetensorsHeader:
    """Read the header of a safetensors file.

    Raises:
        InputError: the file cannot be read or is no safetensors file, its header is truncated, has
            more than 100 MB, or contradicts itself or the file's size.
    """
    cursor = Cursor(source)
    head = cursor.look(64)
    length = int.from_bytes(cursor.take(8), "little")
    if head[8:9] not in {b"{", b""}:
        raise source.wrong(f"no safetensors file: this is {description(head)}")
    if length > MAX_HEADER_BYTES:
        raise source.wrong(f"its header claims {length:,} bytes; the format allows 100 MB")
    content = cursor.take(length)
    entries = parse_object(content, source, MAX_HEADER_VALUES, unique=True)
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise source.wrong("__metadata__: expected text by key")
    tensors, data_bytes = _tensors(entries, source)
    whole = cursor.position + data_bytes
    if source.size is not None and source.size < whole:
        raise source.wrong(
            f"truncated: got {source.size:,} of {whole:,} bytes; copy or download it again"
        )
    if source.size is not None and source.size > whole:
        raise source.wrong(f"has {source.size:,} bytes, but its header describes {whole:,}")
    return SafetensorsHeader(tensors, metadata, data_bytes)


def _tensors(entries: Mapping[str, Any], source: ByteSource) -> tuple[dict[str, StoredTensor], int]:
    """The tensors in the order of their data, which has neither gap nor overlap; and its bytes."""
    spans = []
    for name, entry in entries.items():
        try:
            spans.append((*_span(entry), name, _tensor(entry)))
        except ValueError as error:
            raise source.wrong(f"tensor {printable(name, 100)}: {error}") from None
    end = 0
    tensors = {}
    for begin, after, name, tensor in sorted(spans, key=lambda span: span[:2]):
        if begin != end:
            found = "overlaps the one before" if begin < end else "leaves a gap before its data"
            raise source.wrong(f"tensor {printable(name, 100)}: {found}")
        tensors[name], end = tensor, after
    return tensors, end


def _span(entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError("expected data_offsets [begin, end]")
    return offsets[0], offsets[1]


def _tensor(entry: dict[str, Any]) -> StoredTensor:
    """Read an entry whose offsets were checked."""
    dtype, shape, (begin, end) = entry.get("dtype"), entry.get("shape"), entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"unknown dtype {printable(dtype, 40)}")
    if not _sizes(shape):
        raise ValueError("expected a shape, a list of sizes")
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        if bits > _MAX_ELEMENTS:
            raise ValueError("its shape has too many elements")
    if bits != 8 * (end - begin):
        raise ValueError(f"{dtype} {shape!s:.60} takes {bits / 8:,g} bytes, got {end - begin:,}")
    return StoredTensor(dtype, tuple(shape), end - begin)


def _sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of whole numbers from 0 to 2**63."""
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size <= _MAX_ELEMENTS for size in value
    )


def read_index(source: ByteSource) -> ShardIndex:
    """Read the index of a model in several files.

    Raises:
        InputError: the file cannot be read, is no such index, or names a file outside its folder.
    """
    found = read_object(source, MAX_INDEX_BYTES)
    names = found.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise source.wrong("no weight_map of tensors to files, expected a safetensors index")
    for name in set(names.values()):
        if re.search(r"\A/|(\A|/)\.\.(/|\Z)|[\0\\]|\A\Z", name):
            raise source.wrong(f"names a file outside its folder: {printable(name, 100)}")
    metadata = found.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    whole = isinstance(total, int | float) and 0 < total < _MAX_ELEMENTS and total == int(total)
    return ShardIndex(names, int(total) if whole and total is not None else None)
