"""What `@pytest.mark.memory_budget(...)` says: read with every problem named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any

from tritter_mem.config.options import KEYS, overrides
from tritter_mem.errors import UsageError
from tritter_mem.input_files import is_file
from tritter_mem.results.baseline import PROFILED_KINDS, CheckedKind
from tritter_mem.results.from_json import shown
from tritter_mem.text import printable
from tritter_mem.units import MAX_BYTES, parse_bytes

_BODY = "the test's own body"
_REHEARSED = "a test that is rehearsed"
_OPTIONS = ("context", "batch", "mode", "gpu")
_ALLOWED = {
    "profile": {*_OPTIONS, "kind", "settings", "fast"},
    "module": {"args", "gpu", "kind"},
    _BODY: {"device", "rehearse"},
    _REHEARSED: {"rehearse", "gpu"},
}
_TYPES: dict[str, tuple[type, str]] = {
    "profile": (str, "a bundled profile's name or a YAML file"),
    "module": (str, "FILE.py:FUNCTION, such as 'train.py:build'"),
    "args": (Mapping, "arguments of the module's function, by name"),
    "gpu": (str, "a card's name, such as 'rtx-5080'"),
    "settings": (Mapping, "values by key of the profile, such as {'weights.format': 'int4'}"),
    "fast": (bool, "True or False"),
    "device": (str, "cpu, cuda or cuda:1"),
    "rehearse": (bool, "True or False"),
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
        rehearse: whether the test runs over stand-ins for CUDA's libraries, in a separate process.
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
    rehearse: bool | None = None

    @property
    def budget_bytes(self) -> int:
        """The budget in bytes."""
        return parse_bytes(self.budget)

    @property
    def subject(self) -> str:
        """What the budget is for: `profile`, `module`, the body, or the test, rehearsed."""
        own = _REHEARSED if self.rehearse else _BODY
        return next((name for name in ("profile", "module") if getattr(self, name)), own)

    @property
    def is_of_body(self) -> bool:
        """Whether it is about what the test itself does."""
        return self.subject == _BODY

    @property
    def checked_kind(self) -> CheckedKind:
        """The kind of number that is compared with the budget."""
        if self.subject == _REHEARSED:
            return "rehearsed"
        return "measured" if self.is_of_body else self.kind or "simulated"

    def overrides(self) -> dict[str, Any]:
        """What is changed in the profile, by dotted key; `settings` come last and win.

        The budget of the profile itself makes way for the mark's.
        """
        given = {name: getattr(self, name) for name in _OPTIONS}
        return {"gpu.budget": None} | overrides(given, self.settings)

    def labels(self) -> dict[str, str]:
        """What messages call each override."""
        named = {KEYS[name]: name for name in _OPTIONS}
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
        raise UsageError(f"{error}, expected a budget, such as '15 GiB', then {names}") from error
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
        yield f"budget: got {shown(mark.budget)}, {error}"
        return
    if not 1 <= found <= MAX_BYTES:
        most = "" if found < 1 else f" and up to {MAX_BYTES:,} bytes"
        yield f"budget: got {shown(mark.budget)}, expected a size above 0{most}"


def _wrong_types(mark: MemoryBudget) -> Iterator[str]:
    for name, (kind, allowed) in _TYPES.items():
        value = getattr(mark, name)
        if value is not None and (not isinstance(value, kind) or value == ""):
            yield f"{name}: got {shown(value)}, expected {allowed}"
    if mark.kind is not None and mark.kind not in PROFILED_KINDS:
        yield f"kind: got {shown(mark.kind)}, expected {', '.join(PROFILED_KINDS)}"


def _wrong_values(mark: MemoryBudget) -> Iterator[str]:
    if mark.device is not None and not _DEVICE.fullmatch(mark.device):
        yield f"device: got {shown(mark.device)}, expected {_TYPES['device'][1]}"
    if mark.module is not None:
        yield from _wrong_module(mark.module)
    for name, mapping in {"args": mark.args, "settings": mark.settings}.items():
        if not all(isinstance(key, str) for key in mapping or ()):
            yield f"{name}: got {shown(mapping)}, expected {_TYPES[name][1]}"
    try:
        json.dumps(mark.args and dict(mark.args))
    except (TypeError, ValueError) as error:
        yield f"args: {error}, expected what JSON can hold"


def _wrong_module(module: str) -> Iterator[str]:
    path, _, function = module.rpartition(":")
    if not path or not function.isidentifier():
        yield f"module: got {shown(module)}, expected {_TYPES['module'][1]}"
    elif not is_file(Path(path)):
        yield f"module: {printable(path, 200)}: there is no such file in {Path.cwd()}"


def _not_together(mark: MemoryBudget) -> Iterator[str]:
    if mark.profile is not None and mark.module is not None:
        yield "profile and module cannot be combined; give one"
        return
    options = set().union(*_ALLOWED.values())
    given = [
        f.name for f in fields(mark) if f.name in options and getattr(mark, f.name) is not None
    ]
    wrong = [name for name in given if name not in _ALLOWED[mark.subject]]
    if wrong:
        subjects = {subject for subject, names in _ALLOWED.items() if names & set(wrong)}
        yield f"{', '.join(wrong)}: not for {mark.subject}; for {' or '.join(sorted(subjects))}"
