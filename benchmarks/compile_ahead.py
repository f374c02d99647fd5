"""Compile the kernels that other parts launch into Triton's cache, side by side, before they run.

Each process takes every n-th row of those parts and runs it on tensors that have no memory:
kernels are compiled as they would be for their launch, and not launched. It takes no CUDA context,
so as many run as there are cores. `make gpu PARTS=compile` runs this where the card is, for the
cache is there. It needs no card to compile for one: `python -m benchmarks.compile_ahead --card
CARD`, where CARD is the card that `python -m benchmarks.card` prints there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.card import Card, here, standing_for
from benchmarks.machine_code import compiled_only
from benchmarks.rows import AT_ONCE, Figures, Row, command, compilations
from benchmarks.validations import PROFILES
from tritter_model.ops.registry import Operator
from tritter_model.run import run as run_model

PARTS = ("step", "smoke", "linears", "attention", "variants")
FILES = Path("unused")


def rows(_files: Path) -> Iterator[Row]:
    """As many processes as run side by side."""
    for shard in range(AT_ONCE):
        name = f"process {shard + 1} of {AT_ONCE}"
        yield Row(name, partial(in_a_process, shard, AT_ONCE, here()), together=True)


def in_a_process(shard: int, shards: int, card: Card) -> Figures:
    """What one process compiled, and what it could not."""
    arguments = ["-m", "benchmarks.compile_ahead", "--card", json.dumps(asdict(card))]
    _, output = command([*arguments, "--shard", str(shard), "--of", str(shards)])
    figures: Figures = json.loads(output.splitlines()[-1])
    return figures


def work() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What launches the kernels: the rows of other parts, and the profiles that are validated."""
    for part in PARTS:
        for row in import_module(f"benchmarks.{part}").rows(FILES):
            yield f"{part}: {row.name}", row.take
    for name in PROFILES:
        yield f"validate: {name}", partial(profile, name)


def profile(name: str) -> None:
    """The run that `validate` measures."""
    from tritter_mem.config.loading import load_profile
    from tritter_mem.devices.nvml import find_gpu
    from tritter_mem.models.bundled import run_settings

    run = run_settings(load_profile(name), find_gpu("h100"))
    run = replace(run, multiprocessors=here().multiprocessors, shortened=True)
    run_model(run, "meta", lambda _: nullcontext())


@contextmanager
def compiling(card: Card) -> Iterator[list[Any]]:
    """Inside, tensors are on `meta`, and operators compile what they would launch for the card."""

    def call(operator: Operator, *args: Any) -> None:
        operator.overload(*args)
        if operator.launch is not None:
            operator.launch(*args)

    on_meta = replace(card, device="meta")
    calls = patch.object(Operator, "__call__", call)
    with standing_for(on_meta), compiled_only(card.capability) as found, calls:
        yield found


def compile_shard(card: Card, shard: int, shards: int) -> tuple[int, dict[str, str]]:
    """Launches that were compiled for, and the errors of what could not be."""
    failed: dict[str, str] = {}
    launches = 0
    with compiling(card) as found:
        for name, take in islice(work(), shard, None, shards):
            try:
                take()
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"[:300]
            launches += len(found)
            found.clear()
    return launches, failed


def main() -> int:
    """Compile; prints what was, as JSON."""
    parser = argparse.ArgumentParser(description="Compile kernels ahead.")
    parser.add_argument("--card", required=True, type=json.loads)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    asked = parser.parse_args()
    card = Card(**asked.card)
    with compilations() as compiled:
        launches, failed = compile_shard(card, asked.shard, asked.of)
    print(json.dumps({"launches": launches, "compiled_kernels": len(compiled), "failed": failed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
