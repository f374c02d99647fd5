"""Headers of safetensors files: read back as written, and refused where they are wrong."""

import json
import math
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.header_files import entry, safetensors, with_length
from tritter_mem.errors import InputError
from tritter_mem.models.byte_source import LocalFile
from tritter_mem.models.safetensors_header import (
    DTYPE_BITS,
    SafetensorsHeader,
    StoredTensor,
    read_index,
    read_safetensors,
)

MiB = 1 << 20


def read(content: bytes) -> SafetensorsHeader:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        with LocalFile(path, label="model.safetensors") as source:
            return read_safetensors(source)


def test_tensors_come_in_the_order_of_their_data() -> None:
    entries = {
        "__metadata__": {"format": "pt"},
        "b": entry("F4", [4, 3], 12, 18),
        "a": entry("F32", [3], 0, 12),
        "scalar": entry("BF16", [], 18, 20),
        "empty": entry("I8", [0, 7], 18, 18),
    }
    found = read(safetensors(entries, 20))
    assert list(found.tensors) == ["a", "b", "empty", "scalar"]
    assert found.tensors["b"] == StoredTensor("F4", (4, 3), 6)
    assert found.metadata == {"format": "pt"}
    assert found.data_bytes == 20


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    arrays = {"w": numpy.zeros((3, 5), numpy.float16), "b": numpy.zeros(7, numpy.int64)}
    library.save_file(arrays, path, metadata={"format": "np"})
    with LocalFile(path) as source:
        found = read_safetensors(source)
    assert found.tensors == {
        "w": StoredTensor("F16", (3, 5), 30),
        "b": StoredTensor("I64", (7,), 56),
    }
    assert found.metadata == {"format": "np"}


VALID = {"a": entry("F32", [2], 0, 8), "b": entry("U8", [8], 8, 16)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated: the file ends at byte 0"),
        (b"\x10\0", "truncated: the file ends at byte 2"),
        (safetensors(VALID, 16)[:40], "truncated: the file ends at byte 40"),
        (safetensors(VALID, 15), r"truncated: got \d+ of \d+ bytes"),
        (safetensors(VALID, 17), r"has \d+ bytes, but its header describes \d+"),
        ((10**18).to_bytes(8, "little") + b"{}", "claims 1,000,000,000,000,000,000 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"GGUF\3\0\0\0" + bytes(16), "this is a GGUF file"),
        (b"PK\3\4\0\0\0\0\0\0\0\0", "this is a ZIP archive"),
        (with_length(b"[]"), "no safetensors file: this is a file that starts with 02"),
        (with_length(b""), "got an empty file, expected a JSON object"),
        (with_length(b'{"a": '), "not JSON"),
        (with_length(b'{"a": {}, "a": {}}'), "the key 'a' is there twice"),
        (safetensors({"a": [1]}, 0), r"tensor a: expected data_offsets \[begin, end\]"),
        (safetensors({"a": entry("F32", [2], 8, 0)}, 8), "expected data_offsets"),
        (safetensors({"a": entry("F32", [2], -8, 0)}, 8), "expected data_offsets"),
        (safetensors({"a": entry("F32", [2], 0.0, 8)}, 8), "expected data_offsets"),  # type: ignore[arg-type]
        (safetensors({"a": entry("X32", [2], 0, 8)}, 8), "unknown dtype X32"),
        (safetensors({"a": entry(["F32"], [2], 0, 8)}, 8), "unknown dtype"),  # type: ignore[arg-type]
        (safetensors({"a": entry("F32", [3], 0, 8)}, 8), r"F32 \[3\] takes 12 bytes, got 8"),
        (safetensors({"a": entry("F4", [3], 0, 2)}, 2), "takes 1.5 bytes, got 2"),
        (safetensors({"a": entry("F32", [True], 0, 4)}, 4), "expected a shape"),
        (safetensors({"a": entry("F32", [1 << 62] * 50, 0, 4)}, 4), "too many elements"),
        (safetensors({**VALID, "b": entry("U8", [8], 7, 15)}, 15), "b: overlaps the one before"),
        (safetensors({**VALID, "b": entry("U8", [8], 9, 17)}, 17), "b: leaves a gap before"),
        (safetensors({"a": entry("U8", [8], 1, 9)}, 9), "a: leaves a gap before its data"),
        (safetensors({"__metadata__": {"a": 1}}, 0), "__metadata__: expected text by key"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(content)
    assert str(caught.value).startswith("model.safetensors: ")
    assert "\n" not in str(caught.value)


def test_a_header_that_claims_much_takes_no_memory(tmp_path: Path) -> None:
    """99 MB are allowed by the format; the file does not have them."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="truncated"):
            read((99_000_000).to_bytes(8, "little") + b"{" + b" " * 1000)
        assert tracemalloc.get_traced_memory()[1] < MiB
    finally:
        tracemalloc.stop()


NAMES = st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(lambda shape: [*shape, 4])


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(DTYPE_BITS)), SHAPES)), st.data())
def test_valid_headers_are_read_back(tensors: dict[str, Any], data: st.DataObject) -> None:
    entries, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * DTYPE_BITS[dtype] // 8
        entries[name] = entry(dtype, shape, end, end + size)
        end += size
    shuffled = dict(data.draw(st.permutations(list(entries.items()))))
    content = json.dumps(shuffled, ensure_ascii=data.draw(st.booleans()))
    try:
        encoded = content.encode() + b" " * data.draw(st.integers(0, 7))
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8
        return
    found = read(with_length(encoded) + bytes(end))
    assert found.data_bytes == end
    assert {name: (t.dtype, list(t.shape)) for name, t in found.tensors.items()} == tensors


@settings(deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused_within_bounds(data: st.DataObject) -> None:
    content = bytearray(safetensors({"__metadata__": {"format": "pt"}, **VALID}, 16))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))])
    tracemalloc.start()
    try:
        assert read(damaged).data_bytes <= len(damaged)
    except InputError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * MiB


def index(tmp_path: Path, content: Any) -> Any:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(content))
    with LocalFile(path, label="index") as source:
        return read_index(source)


def test_an_index_names_its_shards_once(tmp_path: Path) -> None:
    weight_map = {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    found = index(tmp_path, {"metadata": {"total_size": 12.0}, "weight_map": weight_map})
    assert found.shards == ["1.safetensors", "2.safetensors"]
    assert found.total_bytes == 12
    assert index(tmp_path, {"weight_map": weight_map}).total_bytes is None


@pytest.mark.parametrize("total", [-1, 1.5, "12", float("inf"), float("nan"), 10**30])
def test_a_total_that_is_no_size_is_not_used(tmp_path: Path, total: Any) -> None:
    assert (
        index(tmp_path, {"metadata": {"total_size": total}, "weight_map": {}}).total_bytes is None
    )


@pytest.mark.parametrize("name", ["../a", "/a", "b/../../a", "..", "", "a\0", "a\\b"])
def test_an_index_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="names a file outside its folder"):
        index(tmp_path, {"weight_map": {"a": name}})


def test_another_file_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weight_map"):
        index(tmp_path, {"model_type": "llama"})
