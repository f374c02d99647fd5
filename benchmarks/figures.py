"""What benchmarks on a CUDA device share: command line, file of figures, environment, shares."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Timing

Found = dict[str, Any]


def timed_on_cuda(what: str, measure: Callable[[], Found], tables: Callable[[Found], str]) -> int:
    """Measure, write the figures and print them as tables; the exit code.

    Args:
        what: is timed; it names the default output too.
        measure: gives every figure, as JSON takes them.
        tables: the figures for reading.
    """
    parser = argparse.ArgumentParser(description=f"Time {what} on a CUDA device.")
    parser.add_argument("--output", type=Path, default=Path(f"out/{what}.json"))
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"found no CUDA device; {what} can be timed on one only", file=sys.stderr)
        return 3
    found = measure()
    write(found, asked.output)
    print(tables(found))
    print(f"\nwritten: {asked.output}")
    return 0


def write(found: Found, path: Path) -> None:
    """Write the figures: all of them, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)


def environment() -> Found:
    """What the figures were taken with."""
    card = torch.cuda.get_device_properties(0)
    return {
        "gpu": card.name,
        "multiprocessors": card.multi_processor_count,
        "l2_cache_bytes": card.L2_cache_size,
        "torch": torch.__version__,
        "triton": import_module("triton").__version__,
        "cuda": torch.version.cuda,
        "gemlite": version("gemlite") if find_spec("gemlite") else None,
    }


def share(nbytes: int, timing: Timing, copy_rate: float) -> float:
    """Of the copy's rate, with these bytes in this time."""
    return round(nbytes / (timing.median_us * 1e-6) / copy_rate, 3)
