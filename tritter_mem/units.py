"""Sizes: integer bytes and token counts, read from and shown as text.

Memory is an `int` of bytes everywhere; only the functions below turn text into bytes or bytes into
text. Binary units (KiB, MiB, GiB, TiB) are powers of 1024, decimal ones (kB, MB, GB, TB) powers of
1000. Token counts follow the field's habit: 128k is 131,072.
"""

from __future__ import annotations

import re

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40
GB = 10**9
MAX_BYTES = 1 << 62  # of memory: more is no size of anything

_BYTE_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": KiB, "mib": MiB, "gib": GiB, "tib": TiB,
}  # fmt: skip
_COUNT_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_SIZE = re.compile(
    r"\s*(\d{1,18}(?:[_,]\d{3}){0,6})(?:\.(\d{1,9}))?\s*([a-z]{0,3})\s*", re.ASCII | re.IGNORECASE
)


def parse_bytes(text: str | int) -> int:
    """Read a memory size such as `15 GiB`, `15GB` or `1024` into bytes.

    Raises:
        ValueError: the text is no size, or not a whole number of bytes.
    """
    return _parse(text, _BYTE_UNITS, "a memory size such as '15 GiB', '15 GB' or a number of bytes")


class NoUnitError(ValueError):
    """A size of memory without a unit, too small for bytes to be meant."""


def parse_memory(text: str | int) -> int:
    """Read a memory size as `parse_bytes` does, and refuse numbers that nobody means as bytes.

    Raises:
        NoUnitError: a number below 1 MiB, above 0 and without a unit, such as `16`.
        ValueError: the text is not a size, or not a whole number of bytes.
    """
    found = parse_bytes(text)
    if 0 < found < MiB and not (typed := str(text).strip())[-1].isalpha():
        raise NoUnitError(f"{typed} would be {typed} bytes; for gibibytes, write {typed}GiB")
    return found


def parse_count(text: str | int) -> int:
    """Read a token count such as `128k`, `1M` or `4096`; k is 1024 and M is 1024².

    Raises:
        ValueError: the text is no count, or not a whole number.
    """
    return _parse(text, _COUNT_UNITS, "a count such as 4096, '128k' or '1M'")


def _parse(text: str | int, units: dict[str, int], wanted: str) -> int:
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[3].lower() not in units:
        raise ValueError(f"expected {wanted}")
    whole, fraction = re.sub("[_,]", "", match[1]), match[2] or ""
    value, rest = divmod(int(whole + fraction) * units[match[3].lower()], 10 ** len(fraction))
    if rest:
        raise ValueError(f"expected a whole number, and {wanted}")
    return int(value)


def format_bytes(count: int, units: str = "GiB") -> str:
    """Render bytes for people in the family of `units` (`GiB`: binary, `GB`: decimal).

    The unit shrinks until the number is at least one, so that small things do not read as 0.00.
    """
    base, names = (1024, ("B", "KiB", "MiB", "GiB")) if units == "GiB" else (
        1000, ("B", "kB", "MB", "GB"))  # fmt: skip
    power = 0
    while power < len(names) - 1 and abs(count) >= base ** (power + 1) * 0.9995:
        power += 1
    if power == 0:
        return f"{count} B"
    return f"{count / base**power:,.{2 if power == 3 else 1}f} {names[power]}"


def format_count(count: int) -> str:
    """Render a token count: 131072 as 128K, 1048576 as 1M, others with separators."""
    for size, name in ((1 << 20, "M"), (1 << 10, "K")):
        if count >= size and count % size == 0:
            return f"{count // size}{name}"
    return f"{count:,}"
