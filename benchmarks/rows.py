"""One part of `make gpu` in a process: its rows, one after the other, each kept as it ends.

`python -m benchmarks.rows PART --records FILE ...` is how `benchmarks.gpu` starts it. A row that
fails records its error and loses only itself. Where the device is lost with it, as after an illegal
access, the process ends with `RESTART`, and another takes the rows that remain.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.card import Card, standing_for
from benchmarks.records import Records

RESTART = 75
AT_ONCE = min(16, len(os.sched_getaffinity(0)))
"""Rows that run side by side: a core each."""
MOST_PRINTED, MOST_KEPT = 20_000, 1_500
"""Characters of a command's output, from its end, in the log and among the figures."""
LAST_SECONDS = 4.0
"""What a row's command gets to end in, once it is interrupted."""
ROOT = Path(__file__).parent.parent

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One piece of a part.

    Attributes:
        take: takes the figures, as JSON has them.
        together: whether rows of this kind that follow one another run side by side.
        skipped: why it cannot be run here; empty where it can.
    """

    name: str
    take: Callable[[], Figures]
    together: bool = False
    skipped: str = ""


class Refused(Exception):  # noqa: N818  (what a row finds out is no error of the row's)
    """A row found what it was to rule out, with the figures that show it."""

    def __init__(self, why: str, figures: Figures) -> None:
        super().__init__(why)
        self.figures = figures


def run(part: str, rows: Sequence[Row], records: Records) -> int:
    """Run the rows that this call has not tried and that have no figures; the exit code.

    Rows that failed in an earlier call, or were cut off, come last. A row that cannot be run here
    is recorded as skipped, which is no failure.
    """
    records.append(part, "planned", rows=[row.name for row in rows])
    done, tried, before = records.finished(part), records.tried(part), records.rows(part)
    rest = [row for row in rows if row.name not in done and row.name not in tried]
    _skip(part, [row for row in rest if row.skipped], records)
    rest = [row for row in rest if not row.skipped]
    passed = True
    for together, some in groupby(sorted(rest, key=lambda r: r.name in before), _together):
        if together:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                results = list(pool.map(lambda row: _take(part, row, records), some))
            passed = passed and all(results)
            continue
        for row in some:
            passed = _take(part, row, records) and passed
            if not passed and _device_is_lost():
                return RESTART
    return 0 if passed else 1


def _together(row: Row) -> bool:
    return row.together


def _skip(part: str, rows: Sequence[Row], records: Records) -> None:
    """Record and print that rows cannot be run here, and why."""
    for row in rows:
        records.append(part, "skipped", row=row.name, why=row.skipped)
    for why, count in Counter(row.skipped for row in rows).items():
        print(f"{count} row{'s' * (count > 1)} skipped: {why}", flush=True)


def _take(part: str, row: Row, records: Records) -> bool:
    """Take one row's figures and write them, or its error; whether it has figures."""
    records.append(part, "begins", row=row.name)
    start = time.monotonic()

    def ends(event: Any, **what: Any) -> None:
        took = round(time.monotonic() - start, 2)
        records.append(part, event, row=row.name, seconds=took, **what)
        note = what.get("error", "").splitlines()[-1:] or [""]
        print(f"{row.name}: {event}, {took:.1f} s {note[0]}".rstrip(), flush=True)

    try:
        with compilations() as compiled:
            figures = row.take()
    except KeyboardInterrupt:
        ends("failed", error="interrupted")
        raise
    except Refused as error:
        ends("failed", error=str(error), figures=error.figures)
        return False
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}".replace(f"{ROOT}/", "")
        ends("failed", error=text[:2000])
        return False
    else:
        ends("finished", figures=figures | ({"compiled": len(compiled)} if compiled else {}))
        return True
    finally:
        _let_go()


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Kernels that were compiled inside, and not found in Triton's cache."""
    found: list[str] = []
    if "torch" not in sys.modules or not has("triton"):
        yield found
        return
    knobs = import_module("triton").knobs.compilation

    def listen(*, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            found.append(metadata["name"])

    before, knobs.listener = knobs.listener, listen
    try:
        yield found
    finally:
        knobs.listener = before


def _let_go() -> None:
    """Give back what a row held; a lost device cannot."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def _device_is_lost() -> bool:
    """Whether every further call of CUDA's would fail in this process."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError:
        return True
    return False


def command(arguments: Sequence[str], allowed: Sequence[int] = (0,)) -> tuple[int, str]:
    """Run Python with these arguments in the checkout: its exit code, and the end of its output.

    Interrupted, it waits for the command, which was interrupted too, to write what it has.

    Raises:
        RuntimeError: an exit code that is not allowed.
    """
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate()
        except BaseException:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=LAST_SECONDS)
            process.kill()
            raise
    print(output[-MOST_PRINTED:], flush=True)
    if process.returncode not in allowed:
        raise RuntimeError(f"exit {process.returncode}: {output[-MOST_KEPT:]}")
    return process.returncode, output[-MOST_KEPT:]


def has(module: str) -> bool:
    """Whether a module is installed."""
    return find_spec(module) is not None


def main() -> int:
    """Run a part; the exit code."""
    parser = argparse.ArgumentParser(description="Run the rows of one part of `make gpu`.")
    parser.add_argument("part")
    parser.add_argument("--module", required=True, help="its `rows(files)` lists them")
    parser.add_argument("--card", required=True, type=json.loads, help="fields of Card")
    parser.add_argument("--records", required=True, type=json.loads, help="fields of Records")
    parser.add_argument("--files", type=Path, required=True, help="a folder for what else it makes")
    asked = parser.parse_args()
    fields = asked.records | {"path": Path(asked.records["path"])}
    with standing_for(Card(**asked.card)):
        rows = list(import_module(asked.module).rows(asked.files))
        return run(asked.part, rows, Records(**fields))


if __name__ == "__main__":
    sys.exit(main())
