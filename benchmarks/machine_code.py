"""What the compiler makes of each kernel, read from its machine code. Needs no GPU.

Every kernel is launched at 7B shapes on tensors that have no memory, compiled for a card that need
not be there, and taken apart: registers, spills, shared memory, the widths of its loads, how many
instructions its loop takes for a weight, how often its threads wait for each other, and whether
copies to shared memory run while it multiplies. `python -m benchmarks.machine_code` prints a table,
`--json` a list; `--capability 90` compiles for one card alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from benchmarks.cases import cases

CAPABILITIES = (80, 90, 120)
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
PRODUCTS = ("IDP", "IMMA", "IGMMA", "HMMA", "HGMMA")
WATCHED = ("LDG", "LDGSTS", "LDSM", "LDS", *PRODUCTS)


@dataclass(frozen=True)
class Reading:
    """One compiled kernel.

    Attributes:
        case: the operator and its shape.
        kernel: the kernel's name.
        capability: 80 for compute capability 8.0.
        registers: of a thread.
        spilled_bytes: of a thread's registers that went to memory.
        shared_bytes: of a program, that it asks for at its launch.
        loop: watched instructions of the innermost loop that has most instructions, with widths.
        barriers: of that loop: how often in a trip all threads of a program wait for each other.
        trips_ahead: trips whose copies to shared memory may be under way while the loop waits for
            those of a trip; 0: it waits for all, so that copies and products take turns; None
            where a loop copies nothing.
        instructions_a_weight: of that loop, for each weight that a thread's share comes to; None
            where the kernel does not unpack weights.
        instructions_a_byte: of that loop, for each byte of the cache; None where it reads none.
    """

    case: str
    kernel: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    loop: dict[str, int]
    barriers: int
    trips_ahead: int | None
    instructions_a_weight: float | None
    instructions_a_byte: float | None


class Target:
    """Stands for a driver whose card is only compiled for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        """The card."""
        return self.target

    def get_current_device(self) -> int:
        """A device number of its own, so that Triton keeps the cards' kernels apart."""
        return int(self.target.arch)

    def get_current_stream(self, device: int) -> int:
        """A stream that nothing is launched on."""
        return 0


@contextmanager
def compiled_only(capability: int) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Kernels launched inside are compiled and listed, with their constants, but not run."""
    found: list[tuple[Any, dict[str, Any]]] = []
    run = triton.JITFunction.run

    def compile_alone(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append((run(self, *args, grid=grid, warmup=True, **options), options))

    triton.runtime.driver.set_active(Target(capability))
    triton.JITFunction.run = compile_alone
    try:
        yield found
    finally:
        triton.JITFunction.run = run


def read(case: str, capability: int, compiled: Any, constants: dict[str, Any]) -> Reading:
    """Take one kernel apart."""
    usage, code = disassembled(compiled.asm["cubin"])
    body = innermost_loop(code)
    weights = weights_a_thread(constants, compiled.metadata.num_warps)
    cached = cached_bytes_a_thread(constants, compiled.metadata.num_warps)
    widths = Counter(width for each in body if (width := watched(each.name)))
    return Reading(
        case=case,
        kernel=compiled.metadata.name,
        capability=capability,
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        spilled_bytes=sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)),
        shared_bytes=compiled.metadata.shared,
        loop=dict(widths),
        barriers=sum(each.name.startswith("BAR.SYNC") for each in body),
        trips_ahead=trips_ahead(body),
        instructions_a_weight=round(len(body) / weights, 2) if weights and body else None,
        instructions_a_byte=round(len(body) / cached, 2) if cached and body else None,
    )


def disassembled(cubin: bytes) -> tuple[str, str]:
    """Resource usage and machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _output("cuobjdump", "-res-usage", file.name), _output("nvdisasm", "-c", file.name)


def _output(tool: str, *arguments: str) -> str:
    ran = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return ran.stdout


class Instruction(NamedTuple):
    """One instruction of machine code: `LDG.E.128`, and what it works on."""

    name: str
    operands: str


def innermost_loop(code: str) -> list[Instruction]:
    """Of loops that hold no other, the one with most products, and among equals the longest."""
    labels: dict[str, int] = {}
    operations: list[Instruction] = []
    loops: list[tuple[int, int]] = []
    for line in code.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(operations)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)([^;]*)", line):
            operations.append(Instruction(found[1], found[2].strip()))
            jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if jump and jump[1] in labels:
                loops.append((labels[jump[1]], len(operations)))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [[o for o in operations[start:end] if o.name != "NOP"] for start, end in inner]
    return max(bodies, key=lambda body: (_products(body), len(body)), default=[])


def _products(body: list[Instruction]) -> int:
    return sum(each.name.split(".")[0] in PRODUCTS for each in body)


def trips_ahead(body: list[Instruction]) -> int | None:
    """How many trips' groups of copies the loop leaves under way where it leaves fewest."""
    groups = sum(each.name == "LDGDEPBAR" for each in body)
    waits = [
        re.search(r"SB0, 0x([0-9a-f]+)", each.operands) for each in body if each.name == "DEPBAR.LE"
    ]
    left = [int(wait[1], 16) for wait in waits if wait]
    return min(left) // groups if groups and left else None


def watched(operation: str) -> str | None:
    """`LDG.128` of `LDG.E.128.CONSTANT`; None for what is not watched."""
    name, *modifiers = operation.split(".")
    if name not in WATCHED:
        return None
    if name.startswith("LD"):
        width = next((m for m in modifiers if m in ("128", "64", "U16", "U8", "S8")), "32")
        return f"{name}.{width}" if name != "LDSM" else name
    return name


def weights_a_thread(constants: dict[str, Any], warps: int) -> float | None:
    """Weights that a trip of a ternary kernel's loop takes, over the threads of its program."""
    if "WORDS" in constants:
        weights = constants["ROWS"] * constants["WORDS"] * 4 * constants["DIGITS"]
    elif "DIGITS" in constants:
        tile = constants["OUTPUTS"] * constants["BYTES"] * constants.get("SPLITS", 1)
        weights = tile * constants["DIGITS"]
    else:
        return None
    return float(weights / (32 * warps))


def cached_bytes_a_thread(constants: dict[str, Any], warps: int) -> float | None:
    """Bytes of quantised keys and values that a trip of decode attention's loop takes."""
    if not constants.get("BITS") or "VALUES_PTX" not in constants:
        return None
    row = constants["WIDTH"] * constants["BITS"] / 8
    return float(2 * constants["TOKENS"] * row / (32 * warps))


def readings(capability: int) -> Iterator[Reading]:
    """Every kernel of every case."""
    for name, launch in cases():
        with compiled_only(capability) as kernels:
            launch()
        for compiled, constants in kernels:
            yield read(name, capability, compiled, constants)


def table(found: list[Reading]) -> str:
    """The readings in Markdown."""
    head = (
        "| case | kernel | card | registers | spilled | shared | barriers | trips ahead"
        " | a weight or byte | loop |"
    )
    lines = [head, "|---" * 10 + "|"]
    for r in found:
        loop = ", ".join(f"{count} {name}" for name, count in sorted(r.loop.items()))
        each = r.instructions_a_weight or r.instructions_a_byte or ""
        ahead = "" if r.trips_ahead is None else r.trips_ahead
        lines.append(
            f"| {r.case} | `{r.kernel}` | sm_{r.capability} | {r.registers} | {r.spilled_bytes}"
            f" | {r.shared_bytes:,} | {r.barriers} | {ahead} | {each} | {loop} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print what was read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, action="append")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = [r for c in asked.capability or CAPABILITIES for r in readings(c)]
    print(json.dumps([asdict(r) for r in found], indent=1) if asked.json else table(found))


if __name__ == "__main__":
    main()
