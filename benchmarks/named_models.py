"""What is planned of models of Hugging Face, beside what their simulated run takes.

`make compare`, or `python -m benchmarks.named_models [FOLDER …] [--rows TEXT] [--again]`. Each
folder has a `config.json`, or folders that have one. By default `../shared/data/hf-configs` is
read; where it is not there, tiny configurations of every planned family are compared.

Simulated figures are kept in `out/named-models/simulated.json`, so a run that was interrupted goes
on; `--again` simulates anew. Plans are always made anew. The table of the default folder is written
to `reports/named-models.md`. Exit code 1 where a plan is further off than its target.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tritter_mem.config.named_profile import QUANTIZATIONS
from tritter_mem.config.profile import Training, Workload
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import ConfigError, SimulationError
from tritter_mem.models.huggingface import read_config
from tritter_mem.models.shape_tensors import NotPlannedError
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.planner.transformers_engine import plan_transformers
from tritter_mem.units import GiB

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT.parent / "shared" / "data" / "hf-configs"
KEPT = ROOT / "out" / "named-models" / "simulated.json"
PAGE = ROOT / "reports" / "named-models.md"
CARD = find_gpu("h100")
TRAINED_PARAMETERS = 10_000_000_000
QUANTISED_PARAMETERS = 40_000_000_000
LIMIT_SECONDS = 300
"""A simulation that takes more processor time is left out."""
TARGETS = {"inference": 0.02, "training": 0.05}
"""How far the allocated peak may be off."""
TINY = 0.01
"""The same for tiny models, whose peak is mostly what libraries take."""
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True,
                "type": "int",
            },
        }
    },
}  # fmt: skip
QUANTISED = {**QUANTIZATIONS, "packed int4 of compressed-tensors": PACKED}

NOTES = """
A plan reserves what the allocator does for its requests, plus one segment of 2 MiB.
"""


class Row(NamedTuple):
    """One run.

    Attributes:
        name: of the model.
        case: the run in words.
        run: what is run; None where the configuration is refused.
        target: how far the plan may be off.
        problem: why there is no run.
    """

    name: str
    case: str
    run: TransformersRun | None
    target: float
    problem: str = ""

    @property
    def key(self) -> str:
        """Under which what is simulated of it is kept."""
        return f"{self.name}: {self.case}"


class Compared(NamedTuple):
    """What came of a run.

    Attributes:
        planned, simulated: allocated peak and reserved peak; None with a reason.
        reason: why there is no plan or no simulation.
        seconds: what the simulation took.
    """

    row: Row
    planned: tuple[int, int] | None = None
    simulated: tuple[int, int] | None = None
    reason: str = ""
    seconds: float = 0

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
        return abs(self.error) <= self.row.target and self.planned[1] >= self.simulated[1]


def main() -> int:
    """Compare, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="with a config.json, or of such")
    parser.add_argument("--rows", default="", help="only rows whose names have this in them")
    parser.add_argument(
        "--again", action="store_true", help="also those that were simulated before"
    )
    options = parser.parse_args()
    rows = list(_rows(_configs(options.folders or [CONFIGS]))) or list(_tiny())
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    found = []
    print(f"{'model':36} {'run':38} {'planned':>9} {'simulated':>9} {'off':>8} {'reserved':>19}")
    for row in rows:
        if options.rows not in row.key:
            continue
        if options.again:
            kept.pop(row.key, None)
        compared = _compare(row, kept)
        found.append(compared)
        print(_line(compared), flush=True)
    if not options.folders and CONFIGS.is_dir() and not options.rows:
        PAGE.write_text(page(found))
    return 0 if all(compared.holds for compared in found) else 1


def _configs(folders: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for folder in folders:
        for path in sorted([*folder.glob("config.json"), *folder.glob("*/config.json")]):
            yield path.parent.name.replace("--", "/"), json.loads(path.read_text())


def _rows(configs: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Row]:
    """Of each model; the quick ones first."""
    sized = [(name, values, _size(values)) for name, values in configs]
    for name, values, parameters in sorted(sized, key=lambda model: model[2]):
        for work in _works():
            yield _row(name, values, work)
        if parameters < TRAINED_PARAMETERS:
            for training in _trainings():
                yield _row(name, values, {"mode": "training", "new_tokens": 1}, training)
        if parameters < QUANTISED_PARAMETERS and "quantization_config" not in values:
            for method, section in QUANTISED.items():
                stored = {**values, "quantization_config": section}
                yield _row(name, stored, {"new_tokens": 4}, method=method)


def _size(values: Mapping[str, Any]) -> int:
    try:
        return read_config(values).parameters
    except ConfigError:
        return 0


def _works() -> Iterator[dict[str, Any]]:
    yield from ({"context": count, "new_tokens": 4} for count in (4096, 32768))
    yield {"new_tokens": 4, "batch": 4}


def _trainings() -> Iterator[Training]:
    for master in ("bfloat16", "float32"):
        for policy in ("none", "every-layer"):
            yield Training.model_validate({
                "master_dtype": master, "checkpointing": {"policy": policy},
            })  # fmt: skip


def _tiny() -> Iterator[Row]:
    from tests.models.tiny_models import BUILT, tiny_config
    from tritter_mem.models.huggingface_families import all_families

    work = {"context": 300, "new_tokens": 6, "batch": 2}
    for name in BUILT:
        if all_families()[name].dialect is not None:
            yield _row(name, tiny_config(name, 0), work)._replace(target=TINY)


def _row(
    name: str,
    values: Mapping[str, Any],
    work: Mapping[str, Any],
    training: Training | None = None,
    method: str = "",
) -> Row:
    work = {"context": 4096} | dict(work)
    case, target = f"{work['context']:,} tokens, batch {work.get('batch', 1)}", TARGETS["inference"]
    if training is not None:
        case, target = f"training, {training.master_dtype}", TARGETS["training"]
        case += ", checkpointed" * (training.checkpointing.policy != "none")
    case = ", ".join(filter(None, (case, method)))
    try:
        model = read_config(values)
    except ConfigError as error:
        return Row(name, case, None, target, f"refused: {error}")
    run = TransformersRun(
        model=model,
        config=values,
        dtype=model.dtype,
        work=Workload.model_validate(work),
        prefill_chunk=None,
        training=training or Training(),
    )
    return Row(name, case, run, target)


def _compare(row: Row, kept: dict[str, Any]) -> Compared:
    if row.run is None:
        return Compared(row, reason=row.problem)
    try:
        use = plan_transformers(row.run, CARD)
    except (ConfigError, NotPlannedError) as error:
        return Compared(row, reason=f"not planned: {error}")
    if row.key not in kept:
        kept[row.key] = _simulated(row.run)
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(kept, indent=1))
    simulated = kept[row.key]
    planned = use.allocated_peak_bytes, use.reserved_peak_bytes or 0
    if "reason" in simulated:
        return Compared(row, planned, reason=simulated["reason"])
    return Compared(row, planned, tuple(simulated["peaks"]), seconds=simulated["seconds"])


def _simulated(run: TransformersRun) -> dict[str, Any]:
    """Peaks of a simulation, or why there are none."""
    from tritter_mem.simulation.transformers_model import simulate_transformers

    begins = time.process_time()
    try:
        with _limited():
            use = simulate_transformers(run, CARD)
    except SimulationError as error:  # it names where the limit ended it, too
        if time.process_time() - begins >= LIMIT_SECONDS:
            return {"reason": f"left out: its simulation takes more than {LIMIT_SECONDS} s"}
        return {"reason": f"not simulated: {str(error)[:160]}"}
    return {
        "peaks": (use.allocated_peak_bytes, use.reserved_peak_bytes),
        "seconds": round(time.process_time() - begins),
    }


@contextmanager
def _limited() -> Iterator[None]:
    """Raise in what takes too much processor time."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _line(compared: Compared) -> str:
    row = compared.row
    start = f"{row.name[:36]:36} {row.case[:38]:38}"
    if compared.planned is None or compared.simulated is None:
        return f"{start} {compared.reason}"
    (planned, reserved), (simulated, wanted) = compared.planned, compared.simulated
    numbers = f"{planned / GiB:9.2f} {simulated / GiB:9.2f} {100 * compared.error:+7.3f}%"
    verdict = "" if compared.holds else "further off than the target"
    return f"{start} {numbers} {reserved / GiB:9.2f} {wanted / GiB:9.2f}  {verdict}".rstrip()


def page(found: list[Compared]) -> str:
    """The table of all rows, with what is out of its target first."""
    compared = [one for one in found if one.planned and one.simulated]
    outside = [one for one in compared if not one.holds]
    lines = [
        "# Plans of named models beside their simulations",
        "",
        "Made by `make compare`: a plan of each configuration beside the simulated run of",
        f"transformers {version('transformers')} over PyTorch {version('torch').split('+')[0]}, on "
        f"{CARD.name}. Allocated and reserved peaks are GiB; *off* is the plan's",
        "allocated peak against the simulated one. A plan holds within 2% in inference and 5% in",
        "training, where it also reserves no less than the simulation.",
        "",
        f"{len(compared)} rows were compared: {len(compared) - len(outside)} hold, "
        f"{len(outside)} do not.",
        "",
        "| model | run | planned | simulated | off | reserved, planned | reserved, simulated | s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in sorted(compared, key=lambda one: one.holds):
        (planned, reserved), (simulated, wanted) = one.planned, one.simulated  # type: ignore[misc]
        mark = "" if one.holds else " **outside**"
        lines.append(
            f"| {one.row.name} | {one.row.case}{mark} | {planned / GiB:.3f} | "
            f"{simulated / GiB:.3f} | {100 * one.error:+.3f}% | {reserved / GiB:.3f} | "
            f"{wanted / GiB:.3f} | {one.seconds:.0f} |"
        )
    lines += NOTES.splitlines()
    lines += ["", "## Not compared", "", "| model | run | why |", "|---|---|---|"]
    lines += [
        f"| {one.row.name} | {one.row.case} | {' '.join(one.reason.split())} |"
        for one in found if one.simulated is None or one.planned is None
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
