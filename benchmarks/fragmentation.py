"""A case that is made to fragment, by allocator setting: simulated and, with a GPU, measured.

`python -m benchmarks.fragmentation --output fragmentation.json`. The simulated table is that of
docs/fragmentation.md. Exit code 3 where a case was to be measured and could not be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.rows import Figures, Refused, Row
from tritter_mem.errors import EXIT_NOT_MEASURED, EXIT_OK
from tritter_mem.models.user_code import read_case
from tritter_mem.profiling.profiler import MeasurementFailedError, ModuleProfile, profile_module
from tritter_mem.results.run import MemoryUse, Result
from tritter_mem.results.writing import write_text_atomically
from tritter_mem.units import MiB

ROOT = Path(__file__).parent.parent
MODULE = ROOT / "docs" / "examples" / "growing_cache.py"
GPU = "rtx-5080"
COLUMNS = (
    "settings", "allocated peak", "reserved peak", "reserved, not allocated",
    "largest free block", "inactive split",
)  # fmt: skip


SETTINGS = ("", "expandable_segments:True", "roundup_power2_divisions:8")
"""The default, then those that save most: what is cut off has the first ones."""


def result_of(conf: str, device: str) -> Result:
    """Simulate the case and, on a device, measure it; no warm-up, because the loop is the case.

    Raises:
        MeasurementFailedError: it could not be measured.
    """
    code = read_case(f"{MODULE}:build", "{}", warmup=0, steps=1)
    return profile_module(ModuleProfile(case=code, gpu=GPU, allocator_conf=conf), device=device)


def table(results: Sequence[Result], kind: str) -> list[str]:
    """A markdown table of one kind of answer, in whole MiB."""
    lines = [_line(COLUMNS), _line(["---", *["---:"] * (len(COLUMNS) - 1)])]
    for conf, result in zip(SETTINGS, results, strict=True):
        use: MemoryUse | None = getattr(result, kind)
        lines.append(_line([_words(conf), *_figures(use)]))
    return lines


def _words(conf: str) -> str:
    return f"`{conf}`" if conf else "default"


def _figures(use: MemoryUse | None) -> list[str]:
    if use is None or use.fragmentation is None:
        return ["-"] * (len(COLUMNS) - 1)
    found = use.fragmentation
    unused = f"{_mib(found.reserved_not_allocated_bytes)} ({found.ratio:.0%})"
    free = [found.largest_free_block_bytes, found.inactive_split_bytes]
    peaks = [use.allocated_peak_bytes, use.reserved_peak_bytes or 0]
    return [*map(_mib, peaks), unused, *map(_mib, free)]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MiB:.0f} MiB"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def run(device: str) -> tuple[list[Result], list[str]]:
    """The case under every setting, and what went wrong with which."""
    results: list[Result] = []
    problems: list[str] = []
    for conf in SETTINGS:
        try:
            results.append(result_of(conf, device))
        except MeasurementFailedError as error:
            results.append(error.result)
            problems += [f"{_words(conf)}: {problem}" for problem in error.problems]
    return results, problems


def rows(_files: Path) -> Iterator[Row]:
    """The settings, measured, as a part of `make gpu`."""
    return (Row(conf or "default", partial(measured, conf)) for conf in SETTINGS)


def measured(conf: str) -> Figures:
    """One setting's result, as JSON has it.

    Raises:
        Refused: it was measured, but how memory lay at the peak was not.
    """
    result = result_of(conf, "cuda")
    use = result.measured or result.rehearsed
    if use is not None and use.fragmentation is None:
        why = use.run.fragmentation_reason if use.run else None
        raise Refused(f"not recorded: {why}", result.to_dict())
    return result.to_dict()


def main() -> int:
    """Run the case under each setting; the exit code."""
    parser = argparse.ArgumentParser(description="A case that is made to fragment.")
    parser.add_argument("--device", default="auto", help="as for `tritter-mem profile`")
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    asked = parser.parse_args()
    results, problems = run(asked.device)
    if asked.output is not None:
        records = [result.to_dict() for result in results]
        write_text_atomically(asked.output, json.dumps(records, ensure_ascii=False) + "\n")
    kinds = ["simulated", *(["measured"] if any(result.measured for result in results) else [])]
    for kind in kinds:
        print("\n".join(["", kind, *table(results, kind)]))
    print("\n".join(problems), file=sys.stderr)
    return EXIT_NOT_MEASURED if problems else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
