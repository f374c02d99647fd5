"""Results as a table for pandas, and as files of it: CSV and parquet."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tritter_mem.errors import OutputError, UsageError
from tritter_mem.report.data import numbers, spreadsheet_text
from tritter_mem.report.files import write_bytes_atomically
from tritter_mem.report.words import printable
from tritter_mem.results import Result

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = (
    "profile",
    "profile_hash",
    "created",
    "torch",
    "kind",
    "gpu",
    "group",
    "name",
    "bytes",
)


def to_frame(results: Sequence[Result]) -> DataFrame:
    """One row for each component, total and phase of every kind of number of every result."""
    from pandas import DataFrame

    rows = [
        (*_place(result), kind, spreadsheet_text(result.gpu_of(kind)), *number)
        for result in results
        for kind, estimate in result.estimates().items()
        for number in numbers(estimate)
    ]
    return DataFrame(rows, columns=list(COLUMNS))


def _place(result: Result) -> tuple[str | None, ...]:
    """The result's part of a row."""
    told = (result.name, result.profile_hash, result.created, result.environment.torch)
    return tuple(None if text is None else spreadsheet_text(text) for text in told)


def check_export(path: Path) -> None:
    """Refuse a file that is neither CSV nor parquet, or that cannot be made here.

    Raises:
        UsageError: its name ends in something else.
        OutputError: it is parquet, and pyarrow is not installed.
    """
    if path.suffix not in _WRITERS:
        allowed = " or ".join(_WRITERS)
        raise UsageError(f"--export: found {printable(path)}; allowed: a file ending in {allowed}")
    if path.suffix == ".parquet":
        _need_pyarrow()


def export(path: Path, results: Sequence[Result]) -> None:
    """Write results as CSV or parquet, by the file's ending, whole or not at all.

    Raises:
        UsageError, OutputError: as `check_export`, or the path cannot be written.
    """
    check_export(path)
    write_bytes_atomically(path, _WRITERS[path.suffix](to_frame(results)))


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
