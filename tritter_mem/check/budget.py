"""What `@pytest.mark.memory_budget(...)` says: read with every problem named."""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import KW_ONLY, dataclass, fields, replace
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import pytest

from tritter_mem.check.compare import Rules
from tritter_mem.check.run import Profiled, Task, outcomes_of, update
from tritter_mem.errors import MeasureError, TritterMemError, UsageError
from tritter_mem.report.budget_report import against_baseline, over_budget
from tritter_mem.results.baseline import Baseline, Case, CheckedKind
from tritter_mem.results.check import Outcome
from tritter_mem.results.run import Components, Estimate, Kind, Phase, Result, Suggestion
from tritter_mem.units import parse_bytes
from tritter_mem.version import __version__

if TYPE_CHECKING:
    from tritter_mem.config.cards import GpuCard
    from tritter_mem.results.baseline import Baseline

NAME = "memory_budget"
KINDS: tuple[CheckedKind, ...] = get_args(CheckedKind)
_BODY = "the test's own body"
_KEYS = {
    "context": "workload.context",
    "batch": "workload.batch",
    "mode": "workload.mode",
    "gpu": "gpu.name",
}
_ALLOWED = {
    "profile": {*_KEYS, "kind", "settings", "fast"},
    "module": {"args", "gpu", "kind"},
    _BODY: {"device"},
}
_TYPES: dict[str, tuple[type, str]] = {
    "profile": (str, "a bundled profile's name or a YAML file"),
    "module": (str, "FILE.py:FUNCTION, such as 'train.py:build'"),
    "args": (Mapping, "arguments of the module's function, by name"),
    "gpu": (str, "a card's name, such as 'rtx-5080'"),
    "settings": (Mapping, "values by key of the profile, such as {'weights.format': 'int4'}"),
    "fast": (bool, "True or False"),
    "device": (str, "cpu, cuda or cuda:1"),
}
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The arguments of the mark; without profile and module it is about the test's own body.

    Attributes:
        budget: most that may be needed, such as `15 GiB`, or bytes.
        profile: a bundled profile's name, or a YAML file from pytest's rootdir on.
        module: third-party code, `FILE.py:FUNCTION`, from pytest's rootdir on.
        args: arguments of the module's function after the device.
        kind: `simulated`, or `measured` on the GPU that is there.
        gpu: the card to fit; default: the profile's.
        context: tokens.
        batch: sequences at once.
        mode: `inference` or `training`.
        settings: any key of the profile, by its dotted name.
        fast: simulated without the chunks and tokens that repeat those before them.
        device: where the body's tensors count; default: CUDA where it is there, else the CPU.
    """

    budget: str | int
    _: KW_ONLY
    profile: str | None = None
    module: str | None = None
    args: Mapping[str, Any] | None = None
    kind: CheckedKind | None = None
    gpu: str | None = None
    context: str | int | None = None
    batch: int | None = None
    mode: str | None = None
    settings: Mapping[str, Any] | None = None
    fast: bool | None = None
    device: str | None = None

    @property
    def budget_bytes(self) -> int:
        """The budget in bytes."""
        return parse_bytes(self.budget)

    @property
    def subject(self) -> str:
        """What is held against the budget: `profile`, `module` or the body."""
        return next((name for name in ("profile", "module") if getattr(self, name)), _BODY)

    @property
    def is_of_body(self) -> bool:
        """Whether it is about what the test itself does."""
        return self.subject == _BODY

    def overrides(self) -> dict[str, Any]:
        """What is changed in the profile, by dotted key; `settings` come last and win.

        The budget of the profile itself makes way for the mark's.
        """
        named = {key: getattr(self, name) for name, key in _KEYS.items()}
        given = {key: value for key, value in named.items() if value is not None}
        return {"gpu.budget": None} | given | dict(self.settings or {})

    def labels(self) -> dict[str, str]:
        """What messages call each override."""
        named = {key: name for name, key in _KEYS.items()}
        return named | {key: f"settings {key}" for key in self.settings or ()}


def read_mark(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> MemoryBudget:
    """Read the arguments of a mark.

    Raises:
        UsageError: with every problem found.
    """
    try:
        bound = signature(MemoryBudget).bind(*arguments, **keywords)
    except TypeError as error:
        names = ", ".join(field.name for field in fields(MemoryBudget) if field.kw_only)
        raise UsageError(f"{error}; allowed: a budget, such as '15 GiB', then {names}") from error
    mark = MemoryBudget(*bound.args, **bound.kwargs)
    problems = [*_wrong_budget(mark), *_wrong_types(mark)]
    problems = problems or [*_wrong_values(mark), *_not_together(mark)]
    if problems:
        raise UsageError(*problems)
    return mark


def _wrong_budget(mark: MemoryBudget) -> Iterator[str]:
    try:
        found = mark.budget_bytes
    except ValueError as error:
        yield f"budget: found {mark.budget!r}; {error}"
        return
    if found < 1:
        yield f"budget: found {mark.budget!r}; allowed: a size above 0"


def _wrong_types(mark: MemoryBudget) -> Iterator[str]:
    for name, (kind, allowed) in _TYPES.items():
        value = getattr(mark, name)
        if value is not None and (not isinstance(value, kind) or value == ""):
            yield f"{name}: found {value!r}; allowed: {allowed}"
    if mark.kind is not None and mark.kind not in KINDS:
        yield f"kind: found {mark.kind!r}; allowed: {', '.join(KINDS)}"


def _wrong_values(mark: MemoryBudget) -> Iterator[str]:
    if mark.device is not None and not _DEVICE.fullmatch(mark.device):
        yield f"device: found {mark.device!r}; allowed: {_TYPES['device'][1]}"
    if mark.module is not None:
        yield from _wrong_module(mark.module)
    for name, mapping in {"args": mark.args, "settings": mark.settings}.items():
        if not all(isinstance(key, str) for key in mapping or ()):
            yield f"{name}: found {mapping!r}; allowed: {_TYPES[name][1]}"
    try:
        json.dumps(mark.args and dict(mark.args))
    except (TypeError, ValueError) as error:
        yield f"args: {error}; allowed: what JSON can hold"


def _wrong_module(module: str) -> Iterator[str]:
    path, _, function = module.rpartition(":")
    if not path or not function.isidentifier():
        yield f"module: found {module!r}; allowed: {_TYPES['module'][1]}"
    elif not Path(path).is_file():
        yield f"module: {path}: there is no such file in {Path.cwd()}"


def _not_together(mark: MemoryBudget) -> Iterator[str]:
    if mark.profile is not None and mark.module is not None:
        yield "found profile and module; give one"
        return
    options = set().union(*_ALLOWED.values())
    given = [
        f.name for f in fields(mark) if f.name in options and getattr(mark, f.name) is not None
    ]
    wrong = [name for name in given if name not in _ALLOWED[mark.subject]]
    if wrong:
        places = {place for place, names in _ALLOWED.items() if names & set(wrong)}
        yield f"{', '.join(wrong)}: not for {mark.subject}; for {' or '.join(sorted(places))}"


def compared(result: Result, baseline: Baseline) -> Outcome:
    """Hold what a test needs against the baseline."""
    (outcome,) = outcomes_of([_profiled(result)], baseline, Rules())
    return outcome


def accepted(results: Iterable[Result], baseline: Baseline) -> tuple[Baseline, tuple[Outcome, ...]]:
    """The baseline with what tests need now, and what that changes; other entries stay."""
    new, outcomes = update(baseline, [_profiled(result) for result in results])
    return new or baseline, outcomes


def is_checked(result: Result) -> bool:
    """Whether a baseline has entries of the kind of number that the verdict is about."""
    return result.verdict is not None and result.verdict.basis in KINDS


def _profiled(result: Result) -> Profiled:
    """A test's record, of the kind of number that its verdict is about."""
    kinds = [kind for kind in KINDS if result.verdict and kind == result.verdict.basis]
    return Profiled(task=Task(case=Case(config=result.name), kinds=kinds), result=result)


PHASE = "test"
_ON_THE_CPU = 'device="cpu" counts the tensors of the CPU'
_NOT_FORESEEN = "a test's own body is neither planned nor simulated: it runs"


def kind_of(mark: MemoryBudget) -> CheckedKind:
    """The kind of number that is held against the budget."""
    return "measured" if mark.is_of_body else mark.kind or "simulated"


def why_not_measured(mark: MemoryBudget) -> str | None:
    """Why what is to be measured on a GPU cannot be here; None where it can."""
    from tritter_mem.devices.cuda import cuda_device
    from tritter_mem.measure.target import MeasureOptions, locate

    try:
        if kind_of(mark) == "measured" and not mark.is_of_body:
            locate(MeasureOptions(device="auto"))
        elif (mark.device or "cpu") != "cpu":
            cuda_device(str(mark.device), _ON_THE_CPU)
    except MeasureError as error:
        return str(error)
    return None


def result_of(mark: MemoryBudget) -> Result:
    """Simulate what a mark names, measure it where that is asked for, and judge it.

    Raises:
        TritterMemError: what is named is wrong, or could not be simulated or measured.
    """
    return _of_profile(mark) if mark.profile is not None else _of_module(mark)


def _of_profile(mark: MemoryBudget) -> Result:
    from tritter_mem.config.loading import load_profile
    from tritter_mem.devices.nvml import find_gpu
    from tritter_mem.planner.suggest import suggest
    from tritter_mem.profiling.profiler import profile

    loaded = load_profile(str(mark.profile), mark.overrides(), mark.labels())
    card = find_gpu(loaded.gpu.name)
    _check_card(mark, card)
    found = profile(loaded, device=_device(mark), fast=bool(mark.fast))
    return _judged(found, mark, suggest(loaded, card, mark.budget_bytes))


def _of_module(mark: MemoryBudget) -> Result:
    from tritter_mem.devices.nvml import find_gpu
    from tritter_mem.models.user_code import ModuleCase
    from tritter_mem.profiling.profiler import DEFAULT_GPU, ModuleProfile, profile_module

    path, _, function = str(mark.module).rpartition(":")
    case = ModuleCase(path=path, function=function, arguments=dict(mark.args or {}))
    asked = ModuleProfile(case=case, gpu=mark.gpu or DEFAULT_GPU)
    _check_card(mark, find_gpu(asked.gpu))
    try:
        found = profile_module(asked, device=_device(mark))
    except UsageError as error:  # which names options of the command line
        raise UsageError(*(problem.removeprefix("--") for problem in error.problems)) from error
    return _judged(found, mark)


def _check_card(mark: MemoryBudget, card: GpuCard) -> None:
    if mark.budget_bytes > card.total_bytes:
        raise UsageError(
            f"budget: found {mark.budget!r}; allowed: up to {card.total_bytes:,} bytes, the memory "
            f"of {card.name}; name a larger card by gpu"
        )


def _device(mark: MemoryBudget) -> str:
    return "auto" if kind_of(mark) == "measured" else "none"


def _judged(result: Result, mark: MemoryBudget, suggestions: Iterable[Suggestion] = ()) -> Result:
    """The record with the verdict on the mark's budget, by the kind that the mark asks for."""
    from tritter_mem.results.verdict import judge

    kind: Kind = kind_of(mark)
    found = result.estimates()
    if kind not in found and "rehearsed" in found:  # over stand-ins nothing is measured
        kind = "rehearsed"
    return replace(result, verdict=judge({kind: found[kind]}, mark.budget_bytes, suggestions))


@contextmanager
def following(mark: MemoryBudget) -> Iterator[Callable[[], Result]]:
    """Follow a test's body; the function that it yields gives the record, once the body is done.

    On CUDA it is PyTorch's peak of allocated memory on the device, with what was there before. On
    the CPU it is what the body makes on this thread, and the weights, gradients and optimizer state
    of modules and optimizers that it uses.
    """
    device = mark.device or _default_device()
    with _on_cuda(device) if device.startswith("cuda") else _on_cpu() as estimate:
        yield lambda: _judged(_record(estimate()), mark)


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _on_cpu() -> Iterator[Callable[[], Estimate]]:
    from tritter_mem.measure.cpu_run import estimate_of
    from tritter_mem.simulation.recorder import Recorder
    from tritter_mem.simulation.user_module import Categories

    with Recorder("cpu") as recorder, Categories(recorder.adopt) as categories:
        with recorder.phase(PHASE):
            yield lambda: estimate_of(recorder.log)
        categories.settle()


@contextmanager
def _on_cuda(name: str) -> Iterator[Callable[[], Estimate]]:
    from tritter_mem.devices.cuda import cuda_device
    from tritter_mem.devices.device import AllocatedPeak

    device = cuda_device(name, _ON_THE_CPU)
    gc.collect()  # what earlier tests left in cycles is not this test's
    peak = AllocatedPeak(device)  # which a tracker that the test resets leaves as it is
    peak.reset()
    yield lambda: _peak_only(device.name, peak.read_bytes())


def _peak_only(device: str, peak_bytes: int) -> Estimate:
    return Estimate(
        device=device,
        components=Components(),
        phases=(Phase(name=PHASE, allocated_peak_bytes=peak_bytes),),
        allocated_peak_bytes=peak_bytes,
    )


def _record(estimate: Estimate) -> Result:
    from tritter_mem.devices.cuda import CudaDevice
    from tritter_mem.devices.environment import collect_environment

    index = int(estimate.device.partition(":")[2] or 0)
    kind = "measured" if estimate.device == "cpu" else CudaDevice(index).kind
    return Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
        environment=collect_environment(gpu=index),
        profile={"device": estimate.device},
        profile_hash="",
        planned_reason=_NOT_FORESEEN,
        simulated_reason=_NOT_FORESEEN,
        **{kind: estimate},  # type: ignore[arg-type]
    )


@dataclass(slots=True, kw_only=True)
class Budgeted:
    """A test with the mark.

    Attributes:
        name: the test's id.
        asked: the mark, read.
        result: what it needs; None until the body of a test that is about it is done.
    """

    name: str
    asked: MemoryBudget
    result: Result | None = None

    @contextmanager
    def around_body(self, baseline: Baseline | None) -> Generator[None]:
        """Enter around the test's body, which runs only where what the mark names fits."""
        if self.result is not None:
            self._hold(self.result, baseline)
            yield
            return
        _forget_last_failure()
        with following(self.asked) as result:
            yield
        self.result = _named(self.name, result())
        self._hold(self.result, baseline)

    def _hold(self, result: Result, baseline: Baseline | None) -> None:
        if result.verdict is not None and not result.verdict.fits:
            _fail(over_budget(result, result.verdict))
        if baseline is not None and is_checked(result):
            outcome = compared(result, baseline)
            if outcome.exit_code:
                _fail(against_baseline(outcome))


def _forget_last_failure() -> None:
    """Of another test: pytest keeps it for debuggers, and with it all that its frames hold.

    It forgets it itself before the next body, but after the peak of that has begun.
    """
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        vars(sys).pop(name, None)


def prepare(item: pytest.Item) -> Budgeted:
    """Read a test's mark and, where it is not about the test's own body, find what is needed.

    A mark that is wrong, and what cannot be simulated or measured, ends the test with an error;
    where a GPU is asked for and there is none, the test is skipped.
    """
    mark = _the_mark(item)
    name = _test_id(item)
    try:
        with chdir(item.config.rootpath):
            asked = read_mark(mark.args, mark.kwargs)
            if reason := why_not_measured(asked):
                pytest.skip(f"{NAME}: {reason}")
            result = None if asked.is_of_body else _named(name, result_of(asked))
    except TritterMemError as error:
        _fail(*error.problems)
    return Budgeted(name=name, asked=asked, result=result)


def _the_mark(item: pytest.Item) -> pytest.Mark:
    """The closest mark: a test's own comes before its class's and module's."""
    (closest, mark), *others = item.iter_markers_with_node(NAME)
    if any(node is closest for node, _ in others):
        _fail("found several on one test; allowed: one; write a test for each")
    return mark


def _test_id(item: pytest.Item) -> str:
    """The test's id, without the groups that xdist may add under `--dist loadgroup`."""
    marks = item.iter_markers("xdist_group")
    groups = {str(mark.args[0] if mark.args else mark.kwargs.get("name")) for mark in marks}
    return item.nodeid.removesuffix(f"@{'_'.join(sorted(groups))}") if groups else item.nodeid


def _named(name: str, result: Result) -> Result:
    return replace(result, profile={**result.profile, "name": name})


def _fail(*problems: str) -> NoReturn:
    """End the test with a message instead of a traceback: nothing in its code is wrong."""
    lines = (f"{NAME}: {problem}" for problem in problems)
    raise pytest.fail.Exception("\n".join(lines), pytrace=False) from None
