"""What `benchmarks.machine_code` reads for one card, loops only where a test looks at them; JSON.

Taking a kernel apart costs as much as compiling it. Run in a new process,
`python -m tests.kernels.machine_code 90`: where kernels are interpreted nothing is compiled.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

from benchmarks import machine_code
from benchmarks.cases import cases

LOOPS = ("ternary-2bit", "ternary-1.6bit", "decode, int4", "decode, int8", "attention, backward",
         "vision, backward")  # fmt: skip
"""How the cases begin whose loops are looked at; others have None for theirs."""


def readings(capability: int) -> Iterator[dict[str, Any]]:
    """Every kernel of every case."""
    for case, launch in cases():
        with machine_code.compiled_only(capability) as kernels:
            launch()
        for compiled, constants in kernels:
            if case.startswith(LOOPS):
                yield asdict(machine_code.read(case, capability, compiled, constants))
            else:
                with patch.object(machine_code, "_output", usage_alone):
                    found = machine_code.read(case, capability, compiled, constants)
                yield asdict(found) | {"loop": None}


def usage_alone(tool: str, *arguments: str, output: Any = machine_code._output) -> str:
    """Of the two tools, only the quick one, which prints registers and spills."""
    return "" if tool == "nvdisasm" else str(output(tool, *arguments))


if __name__ == "__main__":
    print(json.dumps(list(readings(int(sys.argv[1])))))
