"""Readings of probes as lines of a card's entry in the table: text in, text out.

The file keeps its order and its comments; only the lines of the keys that are measured change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import unified_diff

from tritter_mem.errors import MeasureError
from tritter_mem.measure.probes import CONTEXT, CUBLAS, Reading
from tritter_mem.units import MiB

MEASURED = "measured: "


def source_of(torch: str, driver: str | None, date: str) -> str:
    """Where a measured figure is from: `measured: torch 2.11.0, driver 580.1, 2026-01-05`."""
    return f"{MEASURED}torch {torch}, driver {driver or 'unknown'}, {date}"


def updated(entry: str, readings: Sequence[Reading], source: str) -> str:
    """A card's file with what is measured in place of what was assumed.

    What could not be read stays as it is.

    Args:
        entry: the file's text.
        readings: of `probes.probe`.
        source: of `source_of`.

    Raises:
        MeasureError: nothing that the entry holds could be read.
    """
    found = {r.name: r.measured_bytes for r in readings if r.measured_bytes}
    if not found.keys() & {CONTEXT, CUBLAS}:
        raise MeasureError(
            "neither the CUDA context nor cuBLAS's workspace could be read: the card's entry stays"
        )
    text = entry
    if CONTEXT in found:
        text = with_key(text, "context_mib", str(-(-found[CONTEXT] // MiB)))
        text = with_key(text, "context_source", f'"{source}"')
    if CUBLAS in found:
        text = with_key(text, "cublas_workspace_bytes", str(found[CUBLAS]))
        text = with_key(text, "cublas_source", f'"{source}"')
    return text


def with_key(text: str, key: str, value: str) -> str:
    """A flat YAML mapping's text with one key set; a new key comes last."""
    line = f"{key}: {value}\n"
    block = re.compile(rf"^{re.escape(key)}:.*\n?(?:[ \t]+.*\n?)*", re.MULTILINE)
    if block.search(text):
        return block.sub(lambda _: line, text, count=1)
    return text + ("" if text.endswith("\n") or not text else "\n") + line


def difference(before: str, after: str, name: str) -> str:
    """What changes in the file, as `diff -u` shows it; empty where nothing does."""
    old, new = (text.splitlines(keepends=True) for text in (before, after))
    return "".join(unified_diff(old, new, f"a/{name}", f"b/{name}"))
