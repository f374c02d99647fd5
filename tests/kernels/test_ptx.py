"""The PTX that unpacks weights, run here: the interpreter goes another way, and here is no GPU."""

import re

import pytest
import torch

from tritter_model.ops.ternary_format import NEXT_1BIT6, NEXT_2BIT, unpack

WORD = 0xFFFFFFFF


def prmt(a: int, b: int, selector: int) -> int:
    """Four of the eight bytes of two registers (PTX, prmt without a mode)."""
    joined = (a | b << 32).to_bytes(8, "little")
    return int.from_bytes(bytes(joined[selector >> 4 * i & 7] for i in range(4)), "little")


INSTRUCTIONS = {
    "and.b32": lambda a, b: a & b,
    "shr.b32": lambda a, b: a >> b,
    "mul.lo.u32": lambda a, b: a * b & WORD,
    "prmt.b32": prmt,
}


def run(ptx: str, word: int) -> tuple[int, int]:
    """The two output registers, for one input register."""
    registers = {"$2": word}
    lines = [line.strip() for line in re.split(r"[;{}]", ptx)]
    for line in lines:
        if line and not line.startswith(".reg"):
            name, _, operands = line.partition(" ")
            target, *sources = (part.strip() for part in operands.split(","))
            values = [registers[s] if s in registers else int(s, 0) for s in sources]
            registers[target] = INSTRUCTIONS[name](*values)
    return registers["$0"], registers["$1"]


@pytest.mark.parametrize(("ptx", "digits"), [(NEXT_2BIT, 4), (NEXT_1BIT6, 5)])
def test_each_step_takes_the_next_code_of_four_bytes(ptx: str, digits: int) -> None:
    """For every byte, beside three others; in the order in which `unpack` gives them."""
    packed = torch.arange(256, dtype=torch.uint8)[:, None]
    packed = torch.cat([packed, packed * 7 + 3, 255 - packed, packed * 31], 1)
    wanted = unpack(packed.repeat(1, 5), 20 * digits).view(256, digits, 20)[:, :, :4]
    for row, codes in zip(packed.tolist(), wanted.tolist(), strict=True):
        rest = int.from_bytes(bytes(row), "little")
        for step in range(digits):
            code, rest = run(ptx, rest)
            assert list(code.to_bytes(4, "little")) == codes[step]
