"""JSON of unknown origin: an object, or one clear error."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritter_mem.errors import InputError
from tritter_mem.models.byte_source import LocalFile
from tritter_mem.models.json_objects import parse_object, read_object

SOURCE = LocalFile(Path(__file__), label="config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file, expected a JSON object"),
        (b"[1]", "got a file that starts with 5b 31 5d"),
        (b"\x89PNG\r\n", "starts with 89 50"),
        (b'{"a": ', "the file is truncated"),
        (b'{"a": "b', "the file is truncated"),
        (b'{"a": 1,, }', r"not JSON: .* \(line 1, column 9\)$"),
        (b'{"a": "\xff"}', "no UTF-8 text: byte 7"),
        (b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b'{"a":' * 10_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not JSON: Exceeds the limit"),
        (b'{"a": [' + b"0," * 2_000_001 + b"0]}", "more than 2,000,000 values"),
        (b"{" + b'"a":[],' * 700_000 + b'"a": 0}', None),
    ],
)
def test_what_is_wrong_is_said(content: bytes, message: str | None) -> None:
    if message is None:
        assert parse_object(content, SOURCE) == {"a": 0}
        return
    with pytest.raises(InputError, match=message):
        parse_object(content, SOURCE)


def test_values_as_configurations_have_them() -> None:
    content = b'\xef\xbb\xbf{"time_step_limit": [0.0, Infinity], "name": "\xc3\xa9"}'
    found = parse_object(content, SOURCE)
    assert found == {"time_step_limit": [0.0, float("inf")], "name": "é"}


def test_a_key_that_is_there_twice_is_refused_where_asked() -> None:
    with pytest.raises(InputError, match="the key 'a' is there twice"):
        parse_object(b'{"b": {"a": 1, "a": 2}}', SOURCE, unique=True)


def test_a_large_file_is_refused_by_its_size(tmp_path: Path) -> None:
    """It is sparse: reading it would take a gigabyte of memory."""
    path = tmp_path / "config.json"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(10**9)
    with LocalFile(path) as source:
        with pytest.raises(InputError, match=r"got 953.7 MiB, expected at most 16.0 MiB"):
            read_object(source, 16 << 20)
        assert source.left > 200 << 20


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_read_or_say_what_is_wrong(content: bytes) -> None:
    with suppress(InputError):
        assert isinstance(parse_object(b"{" + content, SOURCE), dict)
