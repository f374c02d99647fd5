"""The profiles that `make gpu` validates: plan and simulation, beside what the card measures.

First the routes by which 7B and 128K tokens fit a 16 GB card, under its 15 GiB, then small ones.
Each is a call of `tritter-mem validate`, which keeps its case and goes on where it was ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.evidence import validation_lines
from benchmarks.rows import Figures, Row, command

ROUTES = ("7b-128k-gqa", "7b-128k-hybrid", "7b-128k-int2", "7b-streaming-4k")
SMALL = ("tiny", "125m", "1b")
PROFILES = (*ROUTES, *SMALL)
BUDGET = "15GiB"


def rows(files: Path) -> Iterator[Row]:
    """A row for each profile."""
    return (Row(name, partial(validate, name, files / "validation")) for name in PROFILES)


def validate(name: str, folder: Path) -> Figures:
    """One profile; its figures say where it is beyond the tolerances.

    No page is made: that takes plotly, which a bare machine lacks.
    """
    budget = ["--budget", BUDGET] if name in ROUTES else []
    code, _ = command(
        ["-m", "tritter_mem", "validate", "--device", "cuda", "--config", name, *budget,
         "--output", str(folder), "--time-limit", "120"],
        allowed=(0, 1),
    )  # fmt: skip
    document = json.loads((folder / "validation.json").read_text())
    return {"exit": code, "lines": validation_lines(document), "cases": document["cases"]}
