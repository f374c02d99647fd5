"""How compiled kernels round and in what order they add, read from their code; printed as JSON.

Run in a new process, `python -m tests.kernels.arithmetic 90`: where kernels are interpreted
nothing is compiled.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.kernel_cases import empty, launch, optimizer_cases, quantised
from benchmarks.machine_code import compiled_only, disassembled
from tritter_model.ops import adamw, gated_relu2, rms_norm, rows

TOKENS = 2048
FLOAT32 = torch.float32


def row_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Operators on rows that promise each other's bits, at the widths of a 7B model."""
    for width, dtype in ((4096, torch.bfloat16), (4096, FLOAT32), (11008, torch.bfloat16)):
        x, weight = empty(TOKENS, width, dtype=dtype), empty(width, dtype=FLOAT32)
        both, rstd = empty(TOKENS, 2 * width, dtype=dtype), empty(TOKENS, dtype=FLOAT32)
        codes = quantised(TOKENS, width)
        for name, operator, args in (
            ("norm", rms_norm._rms_norm, (x, weight, 1e-5, x, rstd)),
            ("norm, quantised", rms_norm._rms_norm_rows, (x, weight, 1e-5, *codes)),
            ("sum, norm, quantised", rms_norm._add_rms_norm_rows, (x, x, weight, 1e-5, *codes)),
            ("gate", gated_relu2._gated_relu2, (both, x)),
            ("gate, quantised", gated_relu2._gated_relu2_rows, (both, *codes)),
            ("quantise", rows.quantise_into, (x, *codes)),
        ):
            yield f"{name}, {width}, {dtype}", lambda o=operator, a=args: launch(o, *a)  # type: ignore[misc]


def half_case() -> tuple[str, Callable[[], None]]:
    """A step of a parameter in bfloat16."""
    parameter, moment = empty(4096, 4096), empty(4096, 4096, dtype=FLOAT32)
    args = (parameter, parameter, moment, moment, [0.5] * 7)
    return "AdamW, torch.bfloat16", lambda: launch(adamw._adamw, *args)


def reading(case: str, compiled: Any) -> dict[str, Any]:
    """Of one kernel.

    `products` are those of its PTX, `rounded` those of its machine code that stand alone; `fused`
    counts what its PTX contracts, but for the logarithm, which is written so; `sums` are the sizes
    of the axes that floats are summed along. ptxas makes products that flush (FTZ) of divisions.
    """
    arithmetic = re.compile(r"^\s+(?:@\S+ )?((?:mul|fma)\.\S*f32\S*)", re.MULTILINE)
    found = Counter(arithmetic.findall(compiled.asm["ptx"]))
    usage, code = disassembled(compiled.asm["cubin"])
    return {
        "case": case,
        "products": sum(n * (2 if "x2" in op else 1) for op, n in found.items() if "mul" in op),
        "rounded": len(re.findall(r"\*/\s+(?:@!?U?P\w+ +)?FMUL\b(?!\.FTZ)", code)),
        "fused": sum(n for op, n in found.items() if "fma" in op and "ftz" not in op),
        "sums": summed_axes(compiled.asm["ttgir"]),
        "spilled": sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)),
    }


def summed_axes(ttgir: str) -> list[int]:
    """Sizes of the axes along which the code before PTX sums floats."""
    reduce = r'"tt\.reduce".*?axis = (\d+).*?\(\{(.*?)\}\) : \(tensor<([\dx]+)xf32'
    found = re.findall(reduce, ttgir, re.DOTALL)
    return [int(shape.split("x")[int(axis)]) for axis, body, shape in found if "addf" in body]


def main(capability: int) -> None:
    """Compile for one card."""
    readings = []
    for case, run in (*row_cases(), *optimizer_cases(), half_case()):
        with compiled_only(capability) as kernels:
            run()
        readings += [reading(case, compiled) for compiled, _ in kernels]
    print(json.dumps(readings))


if __name__ == "__main__":
    main(int(sys.argv[1]))
