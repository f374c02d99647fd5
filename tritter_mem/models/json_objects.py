"""JSON objects from files of unknown origin, within bounds of size, depth and number of values."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tritter_mem.models.byte_source import ByteSource, description
from tritter_mem.text import printable
from tritter_mem.units import MiB, format_bytes

MAX_FILE_BYTES = 32 * MiB
MAX_VALUES = 2_000_000


def read_object(source: ByteSource, most_bytes: int = MAX_FILE_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        source: the file.
        most_bytes: that it may have.

    Raises:
        InputError: it cannot be read, has more than `most_bytes`, or is no JSON object.
    """
    content = source.read_up_to(0, most_bytes + 1)
    if len(content) > most_bytes:
        size = f"{format_bytes(source.size)}" if source.size else "more"
        raise source.wrong(f"got {size}, expected at most {format_bytes(most_bytes)}")
    return parse_object(content, source)


def parse_object(
    content: bytes, source: ByteSource, most_values: int = MAX_VALUES, unique: bool = False
) -> dict[str, Any]:
    """Read one JSON object from bytes.

    Args:
        content: UTF-8 text.
        source: where it is from, for messages.
        most_values: that it may hold: each takes some 100 bytes of memory, in the file perhaps 2.
        unique: whether an object that has a key twice is refused.

    Raises:
        InputError: the bytes are no JSON object, or one that goes over a bound.
    """
    if not content.lstrip()[:1] == b"{" and not content.startswith(b"\xef\xbb\xbf"):
        raise source.wrong(f"got {description(content)}, expected a JSON object")
    if sum(map(content.count, (b",", b"[", b"{"))) > most_values:
        raise source.wrong(f"the JSON holds more than {most_values:,} values")
    try:
        text = content.decode("utf-8-sig")
        found = json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise source.wrong("the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise source.wrong(f"no UTF-8 text: byte {error.start:,}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        ends = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        hint = "; the file is truncated: copy or download it again" if ends else ""
        raise source.wrong(f"not JSON: {error.msg} ({where}){hint}") from None
    except ValueError as error:  # a number of thousands of digits, a key that is there twice
        raise source.wrong(f"not JSON: {printable(error, 120)}") from None
    if not isinstance(found, dict):
        raise source.wrong("expected a JSON object")
    return found


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r:.60} is there twice")
        found[key] = value
    return found
