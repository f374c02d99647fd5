"""Ranges of local files: exact, within bounds, and never waiting."""

import os
import socket
from pathlib import Path

import pytest

from tritter_mem.errors import InputError
from tritter_mem.models.byte_source import ByteSource, Cursor, LocalFile, description


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(bytes(range(200)))
    return found


def test_ranges_are_those_of_the_file(path: Path) -> None:
    with LocalFile(path) as source:
        assert source.size == 200
        assert source.read(3, 4) == bytes([3, 4, 5, 6])
        assert source.read_up_to(198, 100) == bytes([198, 199])
        assert source.read_up_to(10**18, 1) == b""


def test_a_range_past_the_end_says_that_the_file_is_truncated(path: Path) -> None:
    with LocalFile(path) as source, pytest.raises(InputError, match=r"ends at byte 200, .* 210"):
        source.read(190, 20)


def test_all_reads_together_stay_within_the_bound(path: Path) -> None:
    with LocalFile(path, most_bytes=100) as source:
        source.read(0, 60)
        source.read(100, 40)
        with pytest.raises(InputError, match="more than 100 B of it would have to be read"):
            source.read(0, 1)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="got a pipe, expected a regular file"):
        LocalFile(tmp_path / "pipe")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got a directory"):
        LocalFile(tmp_path)
    with pytest.raises(InputError, match="got a device"):
        LocalFile(Path("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(InputError, match="got a socket"):
            LocalFile(tmp_path / "s")


def test_a_loop_of_links_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match="symbolic links form a loop"):
        LocalFile(tmp_path / "a")


@pytest.mark.parametrize("name", ["none", "file/below", "nul\0l"])
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        LocalFile(path.parent / name)


def test_cursor_reads_in_order_through_its_windows(tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "file").write_bytes(content)
    with LocalFile(tmp_path / "file") as source:
        cursor = Cursor(source)
        parts = []
        for count in (8, 200_000, 3, 0, 500_000):
            parts.append(cursor.take(count))
            cursor.skip(5)
        assert cursor.position == 700_011 + 25
        start = 0
        for part in parts:
            assert part == content[start : start + len(part)]
            start += len(part) + 5
        cursor.skip(1 << 40)
        with pytest.raises(InputError, match="ends at byte 1,048,576"):
            cursor.take(1)


KiB, MiB = 1 << 10, 1 << 20


class Asked(ByteSource):
    """A file of zeros that lists the ranges asked for: where each starts, and its bytes."""

    def __init__(self, size: int, most_bytes: int = 256 * MiB) -> None:
        super().__init__("file", size, most_bytes)
        self.ranges: list[tuple[int, int]] = []

    def _fetch(self, start: int, count: int) -> bytes:
        self.ranges.append((start, count))
        return bytes(count)


def test_a_cursor_asks_for_windows_that_double_up_to_4_mib() -> None:
    source = Asked(20 * MiB)
    cursor = Cursor(source)
    for _ in range(20 * 256):
        cursor.take(4 * KiB)
    sizes = [128 * KiB << step for step in range(6)]
    starts = [sum(sizes[:number]) for number in range(6)]
    behind = [(at, min(4 * MiB, 20 * MiB - at)) for at in range(sum(sizes), 20 * MiB, 4 * MiB)]
    assert source.ranges == [*zip(starts, sizes, strict=True), *behind]


def test_a_cursor_asks_once_for_what_is_larger_than_a_window() -> None:
    source = Asked(20 * MiB)
    cursor = Cursor(source)
    cursor.take(8)
    assert len(cursor.take(10 * MiB)) == 10 * MiB
    assert source.ranges == [(0, 128 * KiB), (128 * KiB, 10 * MiB + 8 - 128 * KiB)]


def test_a_cursor_does_not_ask_for_what_it_passes_over() -> None:
    source = Asked(20 * MiB)
    cursor = Cursor(source)
    cursor.take(8)
    cursor.skip(10 * MiB)
    cursor.take(8)
    assert source.ranges == [(0, 128 * KiB), (10 * MiB + 8, 256 * KiB)]


def test_a_window_is_no_larger_than_what_may_be_read() -> None:
    source = Asked(20 * MiB, most_bytes=200 * KiB)
    cursor = Cursor(source)
    cursor.take(128 * KiB)
    cursor.take(8)
    assert source.ranges == [(0, 128 * KiB), (128 * KiB, 72 * KiB)]


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"\n<!DOCTYPE html>", "web page"),
        (b"GGUF\3\0\0\0", "GGUF"),
        (b"PK\3\4\0\0", "ZIP archive"),
        (b"", "empty file"),
        (b"\x7fELF", "starts with 7f 45 4c 46"),
    ],
)
def test_a_file_of_another_kind_is_named(head: bytes, what: str) -> None:
    assert what in description(head)
