"""The PTX that takes a cache's codes apart, run here: the interpreter goes another way."""

import re
import struct

import pytest

from tritter_model.ops import kv_digits
from tritter_model.ops.kv_digits import OFFSET, digits_of_pairs_ptx, digits_ptx

WORD = 0xFFFFFFFF


def prmt(a: int, b: int, selector: int) -> int:
    """Four of the eight bytes of two registers (PTX, prmt without a mode)."""
    joined = (a | b << 32).to_bytes(8, "little")
    return int.from_bytes(bytes(joined[selector >> 4 * i & 7] for i in range(4)), "little")


def number(bits: int) -> float:
    """A bfloat16."""
    found: float = struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    return found


def fma(a: int, b: int, c: int) -> int:
    """a * b + c of both halves, which is a bfloat16 without rounding where the test uses it."""
    halves = [number(a >> s & 0xFFFF) * number(b >> s & 0xFFFF) + number(c >> s & 0xFFFF)
              for s in (0, 16)]  # fmt: skip
    words = [struct.unpack("<I", struct.pack("<f", half))[0] for half in halves]
    assert all(word & 0xFFFF == 0 for word in words)
    return words[0] >> 16 | words[1]


INSTRUCTIONS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "lop3.b32": lambda a, b, c, table: sum(
        (table >> (a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1) & 1) << i for i in range(32)
    ),
    "shr.b32": lambda a, b: a >> b & WORD,
    "prmt.b32": prmt,
    "fma.rn.bf16x2": fma,
}


def run(ptx: str, source: str, word: int) -> dict[str, int]:
    """The registers at the end; `mov` to a pair fills two halves."""
    registers = {source: word}
    body = re.sub(r"\{(\$\d+), (\$\d+)\}", r"\1:\2", ptx)
    for line in (part.strip() for part in re.split(r"[;{}\n]", body)):
        if line and not line.startswith(".reg"):
            name, _, operands = line.partition(" ")
            target, *sources = (part.strip() for part in operands.split(","))
            values = [registers[s] if s in registers else int(s, 0) for s in sources]
            result = INSTRUCTIONS[name](*values)
            low, _, high = target.partition(":")
            registers |= {low: result & 0xFFFF, high: result >> 16} if high else {low: result}
    return registers


def digits_of(word: int, digit: int, raw: bool) -> list[list[int]]:
    """Each part's digits of the four bytes, plus the offset or less half their range."""
    more = OFFSET if raw else -(2 ** (digit - 1))
    return [
        [(byte >> digit * part) % 2**digit + more for byte in word.to_bytes(4, "little")]
        for part in range(8 // digit)
    ]


@pytest.mark.parametrize("digit", [4, 2])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("words", [False, True])
def test_every_digit_of_four_bytes(
    monkeypatch: pytest.MonkeyPatch, digit: int, words: bool, raw: bool
) -> None:
    """For every byte, beside three others: halves of registers, or registers of 16 bits."""
    monkeypatch.setattr(kv_digits, "interpreted", lambda: False)
    ptx = digits_ptx(digit, words, raw)
    assert ptx is not None
    outputs = (32 if words else 16) // digit
    for byte in range(256):
        word = byte | (byte * 7 + 3) % 256 << 8 | (255 - byte) << 16 | byte * 31 % 256 << 24
        registers = run(ptx, f"${outputs}", word)
        found = [registers[f"${i}"] for i in range(outputs)]
        halves = found if words else [half for r in found for half in (r & 0xFFFF, r >> 16)]
        wanted = [d for part in digits_of(word, digit, raw) for d in part]
        assert [number(half) for half in halves] == wanted


@pytest.mark.parametrize("digit", [4, 2])
@pytest.mark.parametrize("raw", [False, True])
def test_every_digit_of_two_pairs_of_bytes(
    monkeypatch: pytest.MonkeyPatch, digit: int, raw: bool
) -> None:
    """The digits of both lower bytes, then those of both upper ones."""
    monkeypatch.setattr(kv_digits, "interpreted", lambda: False)
    ptx = digits_of_pairs_ptx(digit, raw)
    assert ptx is not None
    parts = 8 // digit
    for byte in range(256):
        word = byte | (byte * 7 + 3) % 256 << 8 | (255 - byte) << 16 | byte * 31 % 256 << 24
        registers = run(ptx, f"${2 * parts}", word)
        found = [
            [number(registers[f"${i}"] >> shift & 0xFFFF) for shift in (0, 16)]
            for i in range(2 * parts)
        ]
        of_bytes = digits_of(word, digit, raw)
        assert found[:parts] == [[part[0], part[2]] for part in of_bytes]
        assert found[parts:] == [[part[1], part[3]] for part in of_bytes]
