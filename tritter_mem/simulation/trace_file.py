"""Event logs in files: JSON lines, compressed with gzip; equal logs give equal bytes.

The first line is the header, which says what follows, where the phases lie (name, first event, and
the first that is no longer part of it), and what was seen and not counted; where the run empties
the allocator's cache, also behind how many events it does (`emptied`). Then comes a line an event,
in order:

    {"schema":"tritter-mem.trace/1","events":2,"phases":[["prefill",0,2]],"notes":{}}
    {"alloc":0,"bytes":64,"category":"activations","operator":"aten.mm.default","module":"Net.out"}
    {"free":0,"module":"Net"}

A storage's number counts the allocations before it; its bytes and category stand where it comes,
and its `place` where that is not the device's own stream: "side stream" or "graph pool".
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, BinaryIO

from tritter_mem.results.writing import open_atomically
from tritter_mem.simulation.events import Event, EventLog

SCHEMA = "tritter-mem.trace/1"
COMPRESSION = 6


def save_log(log: EventLog, path: Path) -> None:
    """Write a log to a file, whole or not at all; missing folders are made.

    Raises:
        OutputError: the file cannot be written.
    """
    with open_atomically(path) as file:
        _write(log, file)


def _write(log: EventLog, file: BinaryIO) -> None:
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    # Without the name and the time, which would differ from file to file.
    with gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) as packed:
        packed.write(f"{encode(_header(log))}\n".encode())
        packed.writelines(f"{encode(_line(event))}\n".encode() for event in log)


def _header(log: EventLog) -> dict[str, Any]:
    header = {
        "schema": SCHEMA,
        "events": len(log),
        "phases": [(span.name, span.start, span.end) for span in log.spans],
        "notes": dict(sorted(log.notes.items())),
    }
    return header | {"emptied": log.emptied} if log.emptied else header


def _line(event: Event) -> dict[str, Any]:
    if event.kind == "free":
        return {"free": event.storage, "module": event.module}
    line = {
        "alloc": event.storage,
        "bytes": event.bytes,
        "category": event.category,
        "operator": event.operator,
        "module": event.module,
    }
    return line | {"place": event.place} if event.place else line
