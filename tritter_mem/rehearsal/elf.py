"""The dynamic symbols of a shared library, read from the file: no binutils are needed."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tritter_mem.errors import InputError

_DYNSYM, _DYNAMIC, _NEEDS = 11, 6, 0x6FFFFFFE
_NEEDED = 1
_MACHINES = {62: "x86-64", 183: "aarch64"}


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedLibrary:
    """What a library says of itself.

    Attributes:
        machine: `x86-64`, `aarch64`, or a number.
        needed: the libraries that it asks for.
        wanted: functions that it asks others for, and the version of each, `""` where it has none.
        defined: functions that it has.
    """

    machine: str
    needed: tuple[str, ...]
    wanted: dict[str, str]
    defined: frozenset[str]


def read_library(path: Path) -> SharedLibrary:
    """Read a 64-bit little-endian ELF file.

    Raises:
        InputError: it is none, or is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).library()
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise InputError(f"{path}: not a readable shared library: {error}") from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("no 64-bit ELF file")
        self._data = data
        (self._machine,) = struct.unpack_from("<H", data, 18)
        (start,) = struct.unpack_from("<Q", data, 40)
        size, count = struct.unpack_from("<HH", data, 58)
        self._sections = [
            _Section(*struct.unpack_from("<IIQQQQIIQQ", data, start + size * at))
            for at in range(count)
        ]

    def library(self) -> SharedLibrary:
        wanted, defined = self._symbols()
        return SharedLibrary(
            machine=_MACHINES.get(self._machine, str(self._machine)),
            needed=tuple(self._needed()),
            wanted=wanted,
            defined=frozenset(defined),
        )

    def _of_kind(self, kind: int) -> _Section | None:
        return next((section for section in self._sections if section.kind == kind), None)

    def _text(self, strings: _Section, at: int) -> str:
        start = strings.offset + at
        return self._data[start : self._data.find(b"\0", start)].decode()

    def _needed(self) -> Iterator[str]:
        section = self._of_kind(_DYNAMIC)
        if section is None:
            return
        strings = self._sections[section.link]
        for at in range(section.offset, section.offset + section.size, 16):
            tag, value = struct.unpack_from("<QQ", self._data, at)
            if tag == _NEEDED:
                yield self._text(strings, value)

    def _symbols(self) -> tuple[dict[str, str], set[str]]:
        section = self._of_kind(_DYNSYM)
        if section is None:
            return {}, set()
        strings = self._sections[section.link]
        numbers, names = self._version_numbers(section), self._version_names()
        wanted: dict[str, str] = {}
        defined: set[str] = set()
        entries = struct.iter_unpack(
            "<IBBHQQ", self._data[section.offset : section.offset + section.size]
        )
        for at, (name, _, _, index, _, _) in enumerate(entries):
            if not name:
                continue
            if index:
                defined.add(self._text(strings, name))
            else:
                wanted[self._text(strings, name)] = names.get(numbers[at], "") if numbers else ""
        return wanted, defined

    def _version_numbers(self, symbols: _Section) -> tuple[int, ...]:
        """Of each symbol, the number of its version."""
        of = 0x6FFFFFFF
        section = self._of_kind(of)
        if section is None:
            return ()
        count = symbols.size // 24
        return struct.unpack_from(f"<{count}H", self._data, section.offset)

    def _version_names(self) -> dict[int, str]:
        """Versions that are asked of other libraries, by number."""
        section = self._of_kind(_NEEDS)
        found: dict[int, str] = {}
        if section is None:
            return found
        strings, at = self._sections[section.link], section.offset
        for _ in range(section.info):
            _, count, _, first, following = struct.unpack_from("<HHIII", self._data, at)
            one = at + first
            for _ in range(count):
                _, _, number, name, later = struct.unpack_from("<IHHII", self._data, one)
                found[number] = self._text(strings, name)
                one += later
            at += following
        return found
