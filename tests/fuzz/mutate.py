"""Files changed at random, as bytes and, where they are text, value by value."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

_NUMBERS = [n.to_bytes(size, order, signed=n < 0) for n in (0, 1, -1) for size in (1, 2, 4, 8)
            for order in ("little", "big")] + [
    (limit + by).to_bytes(8, "little") for limit in (1 << 31, 1 << 32, 1 << 47, 1 << 62, 1 << 63)
    for by in (-1, 0, 1)
]  # fmt: skip
_VALUES = [
    b"null", b"true", b"-1", b"0", b"1.5", b"1e400", b"-0.0", b"NaN", b"[]", b"{}", b'""', b'"x"',
    b"[[[[]]]]", b'"\\ud800"', b'"\\u202e\\n"', b"9" * 400, b"9" * 5000, b"4611686018427387904",
    b"1000000000", b"65536", b"3", b'"' + b"a" * 5000 + b'"', b"[1,2,3]", b'{"a":1}',
    b'"llama"', b'"mamba2"', b"128k", b"1:30", b"&a", b"*a", b"!!x",
]  # fmt: skip
_VALUE = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|"(?:[^"\\]|\\.)*"|\b(?:true|false|null)\b')


def mutated(content: bytes, others: Sequence[bytes], text: bool, random: Random) -> bytes:
    """A file with one to eight changes.

    Args:
        content: what to change.
        others: files of its kind, from which pieces come.
        text: whether single values are replaced too.
        random: what decides.
    """
    kinds: list[Callable[[bytes, Sequence[bytes], Random], bytes]] = [
        _flip, _number, _cut, _repeat, _splice,
    ]  # fmt: skip
    if text:
        kinds += [_value, _value, _value, _value, _without_line]
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        content = random.choice(kinds)(content, others, random)
    return content


def _at(content: bytes, random: Random) -> int:
    return random.randrange(len(content) + 1)


def _flip(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    at = _at(content, random)
    return (
        content[:at]
        + bytes([b ^ 1 << random.randrange(8) for b in content[at : at + 1]])
        + content[at + 1 :]
    )


def _number(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    at, number = _at(content, random), random.choice(_NUMBERS)
    return content[:at] + number + content[at + len(number) :]


def _cut(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    first = _at(content, random)
    return content[:first] + content[first + random.choice((1, 4, 64, len(content))) :]


def _repeat(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    first = _at(content, random)
    piece = content[first : first + random.choice((1, 8, 100))]
    return content[:first] + piece * random.choice((2, 3, 1000)) + content[first:]


def _splice(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    other = random.choice(others)
    first, at = _at(other, random), _at(content, random)
    return content[:at] + other[first : first + random.choice((8, 100, 5000))] + content[at:]


def _value(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    found = list(_VALUE.finditer(content))
    if not found:
        return content
    match = random.choice(found)
    new = random.choice([random.choice(found)[0], *random.choices(_VALUES, k=4)])
    return content[: match.start()] + new + content[match.end() :]


def _without_line(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    lines = content.split(b"\n")
    del lines[random.randrange(len(lines))]
    return b"\n".join(lines)
