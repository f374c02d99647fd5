"""Files in and out: results read with every problem named, text written whole or not at all."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritter_mem.errors import InputError, OutputError
from tritter_mem.results.reading import implausible, join
from tritter_mem.results.run import SCHEMA, Result
from tritter_mem.text import printable
from tritter_mem.units import MiB, format_bytes

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

MAX_FILE_BYTES = 64 * MiB
MAX_PROBLEMS = 20


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all; missing folders are made.

    Raises:
        OutputError: the path cannot be written.
    """
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` whole or not at all; missing folders are made.

    Raises:
        OutputError: the path cannot be written.
    """
    target = path.resolve()
    temporary = target.parent / f".tritter-mem-{secrets.token_hex(8)}.tmp"
    try:
        _refuse_special(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        _remove(temporary)
        raise _unwritable(path, error) from error
    except BaseException:  # an interrupt too leaves nothing behind
        _remove(temporary)
        raise


def check_writable(path: Path) -> None:
    """Find out before a long run that its output cannot be written.

    Raises:
        OutputError: `path` is no regular file, or its folder does not take files.
    """
    target = path.resolve()
    try:
        _refuse_special(target)
        folder = next(parent for parent in target.parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _refuse_special(target: Path) -> None:
    """A folder cannot be replaced by a file, and a device or a pipe must not be."""
    if target.exists() and not target.is_file():
        raise OSError(0, "it is there and is no regular file")


def _remove(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:  # its folder is no folder: then nothing was written either
        return


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{printable(path)}: cannot be written: {error.strerror}; "
        "name a file in a folder that takes files"
    )


def read_results(path: Path) -> list[Result]:
    """Read one result or a list of them, as `--json` prints them.

    Raises:
        InputError: the file cannot be read, is no JSON or no result; names every problem.
    """
    text = _read(path)
    parsed = _parse(path, text)
    records = parsed if isinstance(parsed, list) else [parsed]
    places = [f"[{index}]" for index in range(len(records))] if records is parsed else [""]
    _refuse(path, _wrong_schemas(records, places))
    results = _validated(path, text if records is parsed else b"[" + text + b"]", places)
    _refuse(
        path, (p for r, place in zip(results, places, strict=True) for p in implausible(r, place))
    )
    return results


def read_results_below(folder: Path) -> list[Result]:
    """Read every result in a folder and in those below it; other files are passed over.

    Raises:
        InputError: there is none.
    """
    found: list[Result] = []
    for path in sorted(folder.rglob("*.json")):
        with suppress(InputError):
            found += read_results(path)
    if not found:
        raise InputError(
            f"{printable(folder)}: no result in it; name a folder that `tritter-mem validate` wrote"
        )
    return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    if len(text) > MAX_FILE_BYTES:
        most = format_bytes(MAX_FILE_BYTES)
        raise InputError(f"{printable(path)}: too large; a result file has at most {most}")
    return text


def _parse(path: Path, text: bytes) -> Any:
    from pydantic_core import from_json

    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InputError(
            f"{printable(path)}: no JSON: {error}; give a file that --json or --output wrote"
        ) from error


def _refuse(path: Path, problems: Iterator[tuple[str, str]]) -> None:
    """Raise for the problems found, if any: `file: key.path: what`."""
    lines = [f"{printable(path)}: {place}{': ' if place else ''}{what}" for place, what in problems]
    if len(lines) > MAX_PROBLEMS:
        more = f"{printable(path)}: and {len(lines) - MAX_PROBLEMS} more problems"
        lines = [*lines[:MAX_PROBLEMS], more]
    if lines:
        raise InputError(*lines)


def _wrong_schemas(records: list[Any], places: list[str]) -> Iterator[tuple[str, str]]:
    if not records:
        yield "", f"an empty list; expected records of {SCHEMA}"
    for record, place in zip(records, places, strict=True):
        if not isinstance(record, dict):
            yield place, f"found {_kind(record)}, expected a record of {SCHEMA}"
        elif record.get("schema") != SCHEMA:
            found = printable(repr(record.get("schema")), 80)
            yield join(place, "schema"), f"found {found}, expected '{SCHEMA}'"


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _validated(path: Path, listed: bytes, places: list[str]) -> list[Result]:
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(listed)
    except ValidationError as error:
        _refuse(path, (_problem(found, places) for found in error.errors()))
        raise


@cache
def _adapter() -> TypeAdapter[list[Result]]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(list[Result], config=ConfigDict(strict=True, allow_inf_nan=False))


def _problem(found: ErrorDetails, places: list[str]) -> tuple[str, str]:
    index, *rest = found["loc"]
    place = places[int(index)]
    for part in rest:
        place = f"{place}[{part}]" if isinstance(part, int) else join(place, part)
    if found["type"] == "missing":
        return place, "missing"
    what = found["msg"].removeprefix("Input should be ")
    return place, f"found {printable(repr(found['input']), 80)}, expected {what}"
