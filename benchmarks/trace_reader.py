"""Read the events that `profile --trace` wrote, to compare them with an allocator's."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritter_mem.errors import InputError
from tritter_mem.results.from_json import parse_json
from tritter_mem.simulation.events import EventLog, Span
from tritter_mem.simulation.trace_file import SCHEMA
from tritter_model.labels import GRAPH_POOL, SIDE_STREAM

MAX_LINE_BYTES = 1 << 20
MAX_STORAGE_BYTES = 1 << 62
_HINT = "give a file that profile --trace wrote"


def load_log(path: Path) -> EventLog:
    """Read a log that `save_log` wrote.

    Raises:
        InputError: the file cannot be read, or is no trace: says which line is wrong, and how.
    """
    reader = _Reader()
    try:
        with gzip.open(path, "rb") as file:
            for line in _lines(file):
                reader.take(line)
        return reader.finished()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: no whole gzip file: {error}; {_HINT}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: line {reader.line}: {error}; {_HINT}") from error


def _lines(file: gzip.GzipFile) -> Iterator[bytes]:
    """Lines of bounded length; a longer one comes in pieces, which are no JSON."""
    while line := file.readline(MAX_LINE_BYTES):
        yield line


class _Reader:
    """Takes a file's lines one by one and makes a log of them.

    Attributes:
        line: number of the line that is being read, from 1.
    """

    def __init__(self) -> None:
        self.line = 0
        self._log = EventLog()
        self._header: dict[str, Any] = {}
        self._live: set[int] = set()

    def take(self, line: bytes) -> None:
        """Read one line.

        Raises:
            ValueError: it is not what should stand there.
        """
        self.line += 1
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(f"no JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"got {_shown(record)}, expected an object")
        if self.line == 1:
            self._take_header(record)
        elif "alloc" in record:
            self._take_alloc(record)
        else:
            self._take_free(record)

    def finished(self) -> EventLog:
        """The log, once all lines are taken.

        Raises:
            ValueError: there are other than so many events as the header says.
        """
        if not self._header:
            raise ValueError("got an empty file")
        expected = self._header["events"]
        if len(self._log) != expected:
            raise ValueError(f"got the end after {len(self._log)} of {expected} events")
        return self._log

    def _take_header(self, record: dict[str, Any]) -> None:
        if record.get("schema") != SCHEMA:
            raise ValueError(f"schema: got {_shown(record.get('schema'))}, expected '{SCHEMA}'")
        events = _number(record, "events")
        self._header = record
        self._log.spans = list(_spans(record.get("phases"), events))
        self._log.notes = _notes(record.get("notes"))
        self._log.emptied = [
            _number({"emptied": at}, "emptied")
            for at in _of(list, record.get("emptied", []), "emptied")
        ]

    def _take_alloc(self, record: dict[str, Any]) -> None:
        storage, expected = _number(record, "alloc"), self._log.storages
        if storage != expected:
            raise ValueError(f"alloc: got storage {storage}, expected {expected}, the next")
        self._log.alloc(
            _number(record, "bytes"),
            operator=_text(record, "operator"),
            module=_text(record, "module"),
            category=_text(record, "category"),
        )
        if "place" in record:
            self._log.places[storage] = _place(record)
        self._live.add(storage)

    def _take_free(self, record: dict[str, Any]) -> None:
        storage = _number(record, "free")
        if storage not in self._live:
            raise ValueError(f"free: got storage {storage}, which is not allocated")
        self._live.remove(storage)
        self._log.free(storage, module=_text(record, "module"))


def _spans(phases: Any, events: int) -> Iterator[Span]:
    position = 0
    for phase in _of(list, phases, "phases"):
        match phase:
            case [str(name), int(start), int(end)] if position <= start <= end <= events:
                yield Span(name, start, end)
                position = end
            case _:
                raise ValueError(
                    f"phases: got {_shown(phase)}, expected a name and the range of its events, "
                    f"within {position} and {events}"
                )


def _notes(notes: Any) -> dict[str, int]:
    found: dict[str, int] = _of(dict, notes, "notes")
    return {text: _number(found, text) for text in found}


def _of(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name}: got {_shown(value)}, expected a {kind.__name__}")
    return value


def _number(record: dict[str, Any], key: str) -> int:
    value = record.get(key)
    if type(value) is not int or not 0 <= value <= MAX_STORAGE_BYTES:
        raise ValueError(f"{key}: got {_shown(value)}, expected 0 to {MAX_STORAGE_BYTES}")
    return value


def _text(record: dict[str, Any], key: str) -> str:
    text: str = _of(str, record.get(key), key)
    return text


def _place(record: dict[str, Any]) -> str:
    place = _text(record, "place")
    if place not in (SIDE_STREAM, GRAPH_POOL):
        raise ValueError(f"place: got {_shown(place)}, expected {SIDE_STREAM} or {GRAPH_POOL}")
    return place


def _shown(value: Any) -> str:
    """What was found, short, and without characters that steer a terminal."""
    return ascii(value)[:80]
