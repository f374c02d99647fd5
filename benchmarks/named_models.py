"""What is planned of models of Hugging Face, beside what their simulated run takes.

`make compare`, or `python -m benchmarks.named_models [FOLDER …] [--tokens 4096 …] [--train]`. Each
folder has a `config.json`, or folders that have one. By default `../shared/data/hf-configs` is
read; where it is not there, tiny configurations of every planned family are compared. Exit code 1
where a plan is further off than its target.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tritter_mem.config.profile import Training, Workload
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import ConfigError, SimulationError
from tritter_mem.models.huggingface import read_config
from tritter_mem.models.shape_tensors import NotPlannedError
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.planner.transformers_engine import plan_transformers
from tritter_mem.units import GiB

CONFIGS = Path(__file__).parent.parent.parent / "shared" / "data" / "hf-configs"
CARD = find_gpu("h100")
TRAINED_PARAMETERS = 10_000_000_000
TARGETS = {"inference": 0.02, "training": 0.05}
"""How far the allocated peak may be off."""
TINY = 0.01
"""The same for tiny models, whose peak is mostly what libraries take."""


class Compared(NamedTuple):
    """One run.

    Attributes:
        planned, simulated: allocated peak and reserved peak; None with a reason.
        reason: why there is no plan or no simulation.
    """

    name: str
    case: str
    planned: tuple[int, int] | None = None
    simulated: tuple[int, int] | None = None
    reason: str = ""
    target: float = 0.0

    @property
    def error(self) -> float:
        """By how much the plan's allocated peak is off."""
        if self.planned is None or self.simulated is None:
            return 0.0
        return self.planned[0] / self.simulated[0] - 1

    @property
    def holds(self) -> bool:
        """Whether the plan is near, and reserves no less."""
        if self.planned is None or self.simulated is None:
            return True
        return abs(self.error) <= self.target and self.planned[1] >= self.simulated[1]


def main() -> int:
    """Compare, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="with a config.json, or of such")
    parser.add_argument("--tokens", nargs="*", type=int, default=[4096, 32768])
    parser.add_argument("--train", action="store_true", help="a training step of small models too")
    options = parser.parse_args()
    holds = True
    print(f"{'model':36} {'run':26} {'planned':>9} {'simulated':>9} {'off':>8} {'reserved':>19}")
    for compared in _compared(options):
        holds &= compared.holds
        print(_row(compared), flush=True)
    return 0 if holds else 1


def _compared(options: argparse.Namespace) -> Iterator[Compared]:
    found = dict(_configs(options.folders or [CONFIGS]))
    if not found:
        yield from _tiny()
        return
    for name, values in found.items():
        for work in _works(options.tokens):
            yield _compare(name, values, work, Training(), TARGETS["inference"])
        if options.train and read_config(values).parameters < TRAINED_PARAMETERS:
            for training in _trainings():
                work = {"mode": "training", "context": 4096, "new_tokens": 1}
                yield _compare(name, values, work, training, TARGETS["training"])


def _configs(folders: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for folder in folders:
        for path in sorted([*folder.glob("config.json"), *folder.glob("*/config.json")]):
            yield path.parent.name, json.loads(path.read_text())


def _works(tokens: list[int]) -> Iterator[dict[str, Any]]:
    yield from ({"context": count, "new_tokens": 4} for count in tokens)
    yield {"context": min(tokens), "new_tokens": 4, "batch": 4}


def _trainings() -> Iterator[Training]:
    for master in ("bfloat16", "float32"):
        for policy in ("none", "every-layer"):
            yield Training.model_validate({
                "master_dtype": master, "checkpointing": {"policy": policy},
            })  # fmt: skip


def _tiny() -> Iterator[Compared]:
    from tests.models.tiny_models import BUILT, tiny_config
    from tritter_mem.models.huggingface_families import FAMILIES

    work = {"context": 300, "new_tokens": 6, "batch": 2}
    for name in BUILT:
        if FAMILIES[name].dialect is not None:
            yield _compare(name, tiny_config(name, 0), work, Training(), TINY)


def _compare(
    name: str, values: dict[str, Any], work: dict[str, Any], training: Training, target: float
) -> Compared:
    from tritter_mem.simulation.transformers_model import simulate_transformers

    case = f"{work['context']:,} tokens, batch {work.get('batch', 1)}"
    if work.get("mode") == "training":
        case = f"{training.master_dtype}, {training.checkpointing.policy}"
    compared = Compared(name, case, target=target)
    try:
        model = read_config(values)
        run = TransformersRun(
            model=model,
            config=values,
            dtype=model.dtype,
            work=Workload.model_validate(work),
            prefill_chunk=None,
            training=training,
        )
        planned = plan_transformers(run, CARD)
    except (ConfigError, NotPlannedError) as error:
        return compared._replace(reason=f"not planned: {error}")
    try:
        simulated = simulate_transformers(run, CARD)
    except SimulationError as error:
        return compared._replace(reason=f"not simulated: {str(error)[:120]}")
    return compared._replace(
        planned=(planned.allocated_peak_bytes, planned.reserved_peak_bytes or 0),
        simulated=(simulated.allocated_peak_bytes, simulated.reserved_peak_bytes or 0),
    )


def _row(compared: Compared) -> str:
    start = f"{compared.name[:36]:36} {compared.case:26}"
    if compared.planned is None or compared.simulated is None:
        return f"{start} {compared.reason}"
    (planned, reserved), (simulated, wanted) = compared.planned, compared.simulated
    numbers = f"{planned / GiB:9.2f} {simulated / GiB:9.2f} {100 * compared.error:+7.3f}%"
    verdict = "" if compared.holds else "further off than the target"
    return f"{start} {numbers} {reserved / GiB:9.2f} {wanted / GiB:9.2f}  {verdict}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
