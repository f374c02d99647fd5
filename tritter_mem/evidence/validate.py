"""Bundled profiles measured one after another, to compare plan and simulation with each.

A case that was finished under the same conditions is kept: the profile's content, the device, the
driver, PyTorch, and the code that plans, simulates, runs and measures.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tritter_model
from tritter_mem.config.cards import AUTO, GpuCard, slug
from tritter_mem.config.loading import load_profile, profile_hash
from tritter_mem.config.profile import Profile
from tritter_mem.devices.environment import collect_environment
from tritter_mem.errors import ConfigError, InputError, TritterMemError, UsageError
from tritter_mem.input_files import remembering_inputs
from tritter_mem.measure.target import LocatedDevice, MeasureOptions, target_on
from tritter_mem.planner.compose import plan
from tritter_mem.profiling.profiler import MeasurementFailedError, profile
from tritter_mem.results.record_file import read_results
from tritter_mem.results.run import Result
from tritter_mem.results.validation import LeftOut, Validated, Validation
from tritter_mem.results.writing import check_writable, write_text_atomically
from tritter_mem.simulation.progress import Progress
from tritter_mem.version import __version__

REPORTS = Path("reports")
"""What devices measured."""
DOCUMENT = "validation.json"
FINISHED = "cases"
_KEY = "[0-9a-f]{16}"
_LONGEST = 80
Kept = Callable[[str, str], Result | None]
"""By a case's name and key its finished record; None where there is none."""
_WITHOUT_FIGURES = {"check", "cli", "evidence", "oom", "report", "pytest_plugin.py", "__main__.py"}
"""Packages and files that show figures, compare them or serve users' own runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCase:
    """A case of the list: a bundled profile, and what is changed in it, by dotted key."""

    name: str
    config: str
    changes: Mapping[str, Any]


def _tiny(name: str, **changes: Any) -> ListedCase:
    return _of("tiny", name, **changes)


def _of(config: str, name: str, **changes: Any) -> ListedCase:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return ListedCase(name=f"{config}-{name}", config=config, changes=dotted)


def _training(config: str, optimizer: str, policy: str, **changes: Any) -> ListedCase:
    short = {"adamw-8bit": "8bit"}.get(optimizer, optimizer)
    kind, _, n = policy.partition(":")
    checkpointing = {"policy": kind, "n": int(n or 1)}
    return _of(
        config, f"{short}-{policy.replace(':', '-')}",
        workload__mode="training", training__optimizer=optimizer,
        training__checkpointing=checkpointing, **changes,
    )  # fmt: skip


CASES = (
    *(_tiny(dtype, kv_cache__dtype=dtype)
      for dtype in ("bfloat16", "float16", "fp8", "int8", "int4", "int2")),
    _training("tiny", "adamw", "every-nth:4"),
    _of("125m", "int4", workload__new_tokens=4),
    _of("125m", "bfloat16", workload__new_tokens=4, kv_cache__dtype="bfloat16"),
    _training("125m", "adamw", "none", workload__context="2k", workload__batch=4),
    _training("125m", "adamw-8bit", "every-layer", workload__context="2k", workload__batch=4),
    _training("125m", "sgd", "selective-attention", workload__context="2k", workload__batch=4),
    _of("1b", "int4", workload__new_tokens=4),
    _of("1b", "fp8-window", workload__new_tokens=4, kv_cache__dtype="fp8",
        model__sliding_window=4096),
    _training("1b", "adamw", "every-layer", workload__context="2k"),
    _training("1b", "adamw-8bit", "selective-matmul", workload__context="4k"),
    _of("3b", "int2", workload__new_tokens=4, workload__context="16k", kv_cache__dtype="int2"),
    _training("3b", "adamw-8bit", "every-layer", workload__context="2k"),
)  # fmt: skip
"""What is validated where no profile is named, the smallest first: each finishes in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under what finished figures stay true.

    Attributes:
        device: a card's title, or `cpu`.
        code: of the packages that the figures come from, by `code_digest`.
    """

    device: str
    torch: str | None
    driver: str | None
    tool_version: str
    code: str

    def key(self, case: Profile) -> str:
        """Name a case by these and by its content: 16 hex digits of SHA-256."""
        content = {**asdict(self), "profile_hash": profile_hash(case)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def conditions_on(card: GpuCard | None, index: int) -> Conditions:
    """What a run on a device is under now; without a card on the CPU."""
    environment = collect_environment(gpu=index)
    return Conditions(
        device="cpu" if card is None else card.title,
        torch=environment.torch,
        driver=None if card is None else environment.driver,
        tool_version=__version__,
        code=code_digest(),
    )


@cache
def code_digest() -> str:
    """16 hex digits of SHA-256 over the sources of all that figures come from."""
    digest = hashlib.sha256()
    for path in figure_sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def figure_sources() -> list[Path]:
    """The model's files, and the tool's but those of `_WITHOUT_FIGURES`."""
    tool, model = Path(__file__).parents[1], Path(tritter_model.__file__).parent
    own = (p for p in tool.rglob("*.py") if p.relative_to(tool).parts[0] not in _WITHOUT_FIGURES)
    return sorted([*own, *model.rglob("*.py")])


def bundled(card: GpuCard | None, budget: str | None) -> list[Profile]:
    """The cases of the list; without a card those that a CPU runs in seconds.

    Raises:
        ConfigError: the budget is none.
    """
    listed = [case for case in CASES if card is not None or case.config == "tiny"]
    return [_loaded(case.config, card, budget, {"name": case.name, **case.changes})
            for case in listed]  # fmt: skip


def named(configs: Sequence[str], card: GpuCard | None, budget: str | None) -> list[Profile]:
    """The profiles that are named.

    Raises:
        ConfigError: with every problem of every profile.
    """
    loaded: list[Profile] = []
    problems: list[str] = []
    for config in configs:
        try:
            loaded.append(_loaded(config, card, budget, {}))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return loaded


def _loaded(
    config: str, card: GpuCard | None, budget: str | None, changes: Mapping[str, Any]
) -> Profile:
    """A profile; a budget is one of the card that measures."""
    cap: dict[str, Any] = {} if budget is None else {"gpu.budget": budget}
    if cap and card is not None:
        cap["gpu.name"] = AUTO
    return load_profile(config, {**changes, **cap}, {"gpu.budget": "--budget"})


def that_fit(cases: Iterable[Profile], card: GpuCard) -> tuple[list[Profile], tuple[LeftOut, ...]]:
    """Split cases by whether a card, or the case's budget on it, holds what is planned."""
    fitting, left = [], []
    for case in cases:
        budget = min(case.gpu.budget or card.total_bytes, card.default_budget_bytes)
        needs = plan(case, card).footprint_bytes
        if needs <= budget:
            fitting.append(case)
        else:
            left.append(LeftOut(name=case.name, needs_bytes=needs, budget_bytes=budget))
    return fitting, tuple(left)


def validate(
    cases: Iterable[Profile],
    conditions: Conditions,
    kept: Kept,
    *,
    options: MeasureOptions,
    device: LocatedDevice,
    progress: Progress | None = None,
) -> Iterator[Validated]:
    """Plan, simulate and measure each case; one that fails does not end the others.

    Args:
        cases: resolved profiles.
        conditions: of this run.
        kept: finds what was finished before.
        options: where to measure, and for how long at most.
        device: what was found for the options.
        progress: shows how far each case is.

    Yields:
        Each case as soon as it has ended.
    """
    for case in cases:
        key = conditions.key(case)
        before = kept(case.name, key)
        if before is not None:
            yield Validated(name=case.name, key=key, result=before, kept=True)
        else:
            result, problem = _profiled(case, options, device, progress)
            yield Validated(name=case.name, key=key, result=result, problem=problem)


def _profiled(
    case: Profile, options: MeasureOptions, device: LocatedDevice, progress: Progress | None
) -> tuple[Result | None, str]:
    """The record, and what went wrong."""
    try:
        target = target_on(device, options, case.gpu.name, case.allocator.conf, case.gpu.budget)
        return profile(case, device=options.device, progress=progress, target=target), ""
    except MeasurementFailedError as error:
        return error.result, "; ".join(error.problems)
    except TritterMemError as error:
        return None, "; ".join(error.problems)
    except Exception as error:  # a fault of one case is no reason to lose the others
        return None, " ".join(f"{type(error).__name__}: {error}".split())


class CaseFiles:
    """The folder of a validation: `validation.json`, and finished cases under `cases`.

    Args:
        folder: made when something is written.

    Raises:
        OutputError: it does not take files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        check_writable(folder / DOCUMENT)
        check_writable(folder / FINISHED / "a.json")

    def read(self, name: str, key: str) -> Result | None:
        """Read a finished case; None if its file is missing or cannot be read."""
        try:
            with remembering_inputs():  # it is written anew where it is not what is wanted
                results = read_results(self._path(name, key))
        except InputError:
            return None
        return results[0] if len(results) == 1 and _ran(results[0]) else None

    def write(self, case: Validated) -> None:
        """Keep a finished case in place of those of its name under other conditions.

        Raises:
            OutputError: it cannot be written.
        """
        if case.result is None or case.kept or case.status == "not measured":
            return
        path = self._path(case.name, case.key)
        write_text_atomically(path, json.dumps(case.result.to_dict(), ensure_ascii=False) + "\n")
        for other in path.parent.iterdir():
            own = re.fullmatch(rf"{re.escape(_file_name(case.name))}-{_KEY}\.json", other.name)
            if own and other != path:
                other.unlink()

    def write_document(self, validation: Validation) -> None:
        """Write the figures of all cases.

        Raises:
            OutputError: they cannot be written.
        """
        text = json.dumps(validation.to_dict(), indent=1, ensure_ascii=False) + "\n"
        write_text_atomically(self._folder / DOCUMENT, text)

    def _path(self, name: str, key: str) -> Path:
        return self._folder / FINISHED / f"{_file_name(name)}-{key}.json"


def _ran(result: Result) -> bool:
    return result.measured is not None or result.rehearsed is not None


def refuse_rehearsed_evidence(folder: Path) -> None:
    """Keep what was rehearsed out of the folder of what was measured.

    Raises:
        UsageError: the folder is below `reports`.
    """
    if REPORTS.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UsageError(
            f"--output: got {folder}, expected a folder outside of {REPORTS}, which holds what "
            "was measured: CUDA's libraries are stand-ins here, which measure nothing"
        )


def folder_of(device: str) -> Path:
    """`reports/nvidia-h100-80gb-hbm3` for NVIDIA H100 80GB HBM3."""
    return REPORTS / (slug(device)[:_LONGEST] or "unnamed")


def _file_name(name: str) -> str:
    """A name that is no other case's: what a file name cannot show of it is a digest."""
    shown = slug(name)[:_LONGEST]
    if shown == name:
        return name
    return f"{shown}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
