"""Scripts of `rehearsals/scripts` on a GPU: what PyTorch's allocator counts of each, to the byte.

`make gpu PARTS=scripts` runs them; `make rehearsals` sets the rehearsal of the same command, with
the same releases, beside these figures. Each leaves the history of its memory, without stack
frames, so that a difference can be found request by request.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.card import here
from benchmarks.rehearsals.rows import MEASURED, Row
from benchmarks.rehearsals.rows import SCRIPTS as FOLDER
from benchmarks.rows import Figures, command, has
from benchmarks.rows import Row as PartRow
from benchmarks.snapshots import stripped

PACKAGES = ("torch", "transformers", "accelerate", "peft", "triton")
MOST_EVENTS = 1_000_000


def rows(files: Path) -> Iterator[PartRow]:
    """A row for each script: side by side those that fit the card together, then the large one."""
    skipped = "" if has("transformers") else "transformers is not installed"
    if here().standin:
        skipped = "`make rehearsals` runs these over stand-ins"
    for row in MEASURED:
        take = partial(measured, row, files / "scripts")
        yield PartRow(row.name, take, together=not row.alone, skipped=skipped)


def measured(row: Row, folder: Path) -> Figures:
    """One script in a process: the allocator's peaks."""
    own = folder / "".join(c if c.isalnum() else "-" for c in row.name)
    own.mkdir(parents=True, exist_ok=True)
    words = row.words(own)
    assert words[0] == "python"  # noqa: S101  (no launcher is measured)
    _, output = command(["-m", "benchmarks.scripts", str(own), *words[1:]])
    found: Figures = json.loads(output.splitlines()[-1])
    return found


def main() -> int:
    """Run a script as Python does, then print what it took as JSON."""
    parser = argparse.ArgumentParser(description="Run a script and read PyTorch's allocator.")
    parser.add_argument("folder", type=Path, help="where the history of its memory goes")
    parser.add_argument("script", help="a file of benchmarks/rehearsals/scripts")
    parser.add_argument("arguments", nargs="*")
    asked = parser.parse_args()
    import torch

    # A peak is of the whole run, as a rehearsal counts it.
    torch.cuda.reset_peak_memory_stats = lambda *_: None
    torch.cuda.memory._record_memory_history(context=None, stacks="python", max_entries=MOST_EVENTS)
    sys.argv = [asked.script, *asked.arguments]
    runpy.run_path(str(FOLDER / asked.script), run_name="__main__")
    torch.cuda.synchronize()
    print(json.dumps(_figures(asked.folder)))
    return 0


def _figures(folder: Path) -> dict[str, Any]:
    import torch

    from tritter_mem.allocator.snapshot import save_snapshot

    stats = torch.cuda.memory_stats()
    snapshot = torch.cuda.memory._snapshot()
    save_snapshot(folder / "history.pickle", stripped(snapshot))
    return {
        "allocated_peak_bytes": stats["allocated_bytes.all.peak"],
        "reserved_peak_bytes": stats["reserved_bytes.all.peak"],
        "allocated_end_bytes": stats["allocated_bytes.all.current"],
        "events": sum(map(len, snapshot["device_traces"])),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
