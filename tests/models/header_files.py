"""Files as other programs write them: safetensors and GGUF, their headers alone or whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from tritter_mem.models.gguf import GGML_TYPES

NUMBERS = {type_.name: number for number, type_ in GGML_TYPES.items()}


def entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def with_length(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def safetensors(entries: Mapping[str, Any], data_bytes: int) -> bytes:
    return with_length(json.dumps(entries).encode()) + bytes(data_bytes)


def text(value: str) -> bytes:
    content = value.encode()
    return struct.pack("<Q", len(content)) + content


def number(kind: int, code: str, value: Any) -> bytes:
    """A value of metadata, or the head of one that follows."""
    return struct.pack(f"<I{code}", kind, value)


def u32(value: int) -> bytes:
    return number(4, "I", value)


def string(value: str) -> bytes:
    return struct.pack("<I", 8) + text(value)


def array(kind: int, items: Sequence[bytes]) -> bytes:
    return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)


def u32s(*values: int) -> bytes:
    return array(4, [struct.pack("<I", value) for value in values])


def bools(*values: bool) -> bytes:
    return array(7, [struct.pack("<?", value) for value in values])


def strings(*values: str) -> bytes:
    return array(8, [text(value) for value in values])


def gguf(
    metadata: Mapping[str, bytes],
    tensors: Mapping[str, tuple[str, Sequence[int], int]] | None = None,
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    """A GGUF file whose weights are zeros.

    Args:
        metadata: packed values by key.
        tensors: type, shape and bytes by name.
        alignment: of the data; the caller states it in the metadata too.
        version: of the format.
    """
    tensors = tensors or {}
    content = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    content += b"".join(text(key) + value for key, value in metadata.items())
    data = bytearray()
    for name, (kind, shape, size) in tensors.items():
        content += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        content += struct.pack("<IQ", NUMBERS[kind], len(data))
        data += bytes(-(-size // alignment) * alignment)
    if tensors:
        content += bytes(-len(content) % alignment)
    return content + data
