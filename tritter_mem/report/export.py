"""Results as a table for pandas, and as files of it: CSV and parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tritter_mem.errors import OutputError, UsageError
from tritter_mem.results.run import MemoryUse, Result
from tritter_mem.results.writing import open_atomically
from tritter_mem.text import printable

if TYPE_CHECKING:
    from pandas import DataFrame

PAGE_COLUMNS = ("profile", "kind", "device", "group", "name", "bytes")
COLUMNS = ("profile", "profile_hash", "created", "torch", "kind", "gpu", "group", "name", "bytes")
# Some read the full-width forms as these, and pass over spaces before them.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\u2212")
Number = tuple[str, str, int]
"""Group, name and bytes."""


def to_csv(results: Sequence[Result]) -> str:
    """The data that a page offers: every component, total and phase of every kind, in bytes.

    Text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(PAGE_COLUMNS)
    for result in results:
        for kind, use in result.by_kind().items():
            made_of = (spreadsheet_text(result.name), kind, spreadsheet_text(use.device))
            writer.writerows((*made_of, *number) for number in numbers(use))
    return out.getvalue()


def numbers(use: MemoryUse) -> Iterator[Number]:
    """Group, name and bytes of every component, total and phase."""
    yield from (("component", name, size) for name, size in use.components.items().items())
    for name, total in use.totals().items():
        if total is not None:
            yield "total", name, total
    for phase in use.phases:
        yield "phase allocated", spreadsheet_text(phase.name), phase.allocated_peak_bytes
        if phase.reserved_peak_bytes is not None:
            yield "phase reserved", spreadsheet_text(phase.name), phase.reserved_peak_bytes


def spreadsheet_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def to_frame(results: Sequence[Result]) -> DataFrame:
    """One row for each component, total and phase of every kind of number of every result."""
    from pandas import DataFrame

    rows = [
        (*_made_of(result), kind, spreadsheet_text(result.gpu_of(kind)), *number)
        for result in results
        for kind, use in result.by_kind().items()
        for number in numbers(use)
    ]
    return DataFrame(rows, columns=list(COLUMNS))


def _made_of(result: Result) -> tuple[str | None, ...]:
    """The first columns of all rows of a result."""
    texts = (result.name, result.profile_hash, result.created, result.environment.torch)
    return tuple(None if text is None else spreadsheet_text(text) for text in texts)


def check_export(path: Path) -> None:
    """Refuse a file that is neither CSV nor parquet, or that cannot be made here.

    Raises:
        UsageError: its name ends in something else.
        OutputError: it is parquet, and pyarrow is not installed.
    """
    if path.suffix not in _WRITERS:
        allowed = " or ".join(_WRITERS)
        raise UsageError(f"--export: got {printable(path)}, expected a file ending in {allowed}")
    if path.suffix == ".parquet":
        _need_pyarrow()


def export(path: Path, results: Sequence[Result]) -> None:
    """Write results as CSV or parquet, by the file's ending, whole or not at all.

    Raises:
        UsageError, OutputError: as `check_export`, or the path cannot be written.
    """
    check_export(path)
    content = _WRITERS[path.suffix](to_frame(results))
    with open_atomically(path) as file:
        file.write(content)


def _csv(frame: DataFrame) -> bytes:
    return str(frame.to_csv(index=False, lineterminator="\n")).encode()


def _parquet(frame: DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, engine="pyarrow")
    return buffer.getvalue()


_WRITERS: dict[str, Callable[[DataFrame], bytes]] = {".csv": _csv, ".parquet": _parquet}


def _need_pyarrow() -> None:
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise OutputError(
            "parquet needs pyarrow, which is not installed: pip install 'tritter-mem[parquet]', or "
            "export to a file ending in .csv"
        )
