"""Third-party code: finding it, calling it, and saying in one line what went wrong, and where."""

from __future__ import annotations

import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from tritter_mem.errors import InputError, SimulationError, TritterMemError, UsageError
from tritter_mem.input_files import is_file, note_input
from tritter_mem.results.from_json import parse_json

_NEEDS_VALUES = re.compile(
    r"on meta tensors|of meta tensor|Meta tensors|'Meta' backend|meta device type tensor|"
    r"raises unimplemented by default"
)
_NEEDS_CUDA = re.compile(r"not compiled with CUDA|No CUDA GPUs|NVIDIA driver")
_NOT_ON_META = re.compile(r"\bmeta\b", re.IGNORECASE)
_ADVICE = (
    (
        _NEEDS_VALUES,
        "needs the values of a tensor, and a simulation has shapes only: return the tensor and "
        "read it outside of the step, or guard the line with `if not tensor.is_meta`",
    ),
    (
        _NEEDS_CUDA,
        "asks for a CUDA device, and a simulation has none: use the device that the function is "
        "given, or guard the line with `if device.type == 'cuda'`",
    ),
    (
        _NOT_ON_META,
        "does not work on PyTorch's `meta` device, where a simulation runs: guard the line with "
        "`if device.type != 'meta'`",
    ),
)
_LIBRARIES = tuple(
    str(Path(path))
    for name in ("stdlib", "purelib", "platlib")
    if (path := sysconfig.get_path(name))
)
_OWN = str(Path(__file__).parent.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCase:
    """A function that builds a model, and how to run what it builds.

    Attributes:
        path: of the Python file.
        function: its name in the file; `build(device, **arguments)` returns a function of no
            arguments that runs one step.
        arguments: for the function, as in JSON.
        warmup: steps that run before any counts.
        steps: steps that count.
    """

    path: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    warmup: int = 1
    steps: int = 1

    @property
    def name(self) -> str:
        """File and function, such as `train.py:build`."""
        return f"{Path(self.path).name}:{self.function}"


def read_case(module: str, arguments: str = "{}", *, warmup: int = 1, steps: int = 1) -> ModuleCase:
    """Read what a command line says of third-party code.

    Args:
        module: `path/to/file.py:function`.
        arguments: a JSON object.
        warmup: steps that run before any counts.
        steps: steps that count.

    Raises:
        UsageError: with every problem found.
    """
    path, _, function = module.rpartition(":")
    problems = [*_path_problems(module, path, function), *_count_problems(warmup, steps)]
    given = _read_arguments(arguments, problems)
    if problems:
        raise UsageError(*problems)
    return ModuleCase(path=path, function=function, arguments=given, warmup=warmup, steps=steps)


def _path_problems(module: str, path: str, function: str) -> Iterator[str]:
    if not path or not function.isidentifier():
        allowed = "expected FILE.py:FUNCTION, such as train.py:build"
        yield f"--module: got {module!r}, {allowed}"
    elif not is_file(Path(path)):
        yield f"--module: {path}: there is no such file"
    else:
        note_input(Path(path))


def _count_problems(warmup: int, steps: int) -> Iterator[str]:
    if warmup < 0:
        yield f"--warmup: got {warmup}, expected 0 or more"
    if steps < 1:
        yield f"--steps: got {steps}, expected 1 or more"


def _read_arguments(text: str, problems: list[str]) -> dict[str, Any]:
    allowed = "expected a JSON object, such as '{\"layers\": 12}'"
    try:
        found = parse_json(text)
    except ValueError as error:
        problems.append(f"--args: got {text[:80]!r}, which is not JSON ({error}); {allowed}")
        return {}
    if not isinstance(found, dict):
        problems.append(f"--args: got {text[:80]!r}, {allowed}")
        return {}
    return found


def load(case: ModuleCase) -> Callable[..., Any]:
    """Import the file and return its function, once it is known to take the arguments.

    Raises:
        InputError: the file fails on import, or has no such function.
        UsageError: the function does not take the arguments.
    """
    module = _import(case)
    function = getattr(module, case.function, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        there = f"its functions: {', '.join(known)}" if known else "it has no functions"
        raise InputError(f"{case.path}: there is no function {case.function!r}; {there}")
    _check_arguments(case, function)
    build: Callable[..., Any] = function
    return build


def _import(case: ModuleCase) -> Any:
    path = Path(case.path).resolve()
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{case.path}: not a Python file, expected a name that ends in .py")
    module = module_from_spec(spec)
    if str(path.parent) not in sys.path:  # as when Python runs it: what lies beside it is there
        sys.path.insert(0, str(path.parent))
    present = sys.modules.get(path.stem)
    if present is None or getattr(present, "__file__", None) == str(path):
        sys.modules[path.stem] = module  # dataclasses and pickle look there
    with explained(case):
        spec.loader.exec_module(module)
    return module


def _check_arguments(case: ModuleCase, function: Callable[..., Any]) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind("meta", **case.arguments)
    except TypeError as error:
        taken = ", ".join(list(signature.parameters)[1:]) or "none"
        raise UsageError(
            f"--args: {case.name}(device, ...): {error}; arguments that it takes: {taken}"
        ) from error


@contextmanager
def explained(case: ModuleCase) -> Iterator[None]:
    """Turn what third-party code raises into one line that names the line that did it.

    Raises:
        SimulationError: it needed what a simulation does not have: values, or a CUDA device.
        InputError: it failed on its own.
    """
    try:
        yield
    except (TritterMemError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit, and what the code derives from BaseException
        raise _explanation(error, case) from error


def _explanation(error: BaseException, case: ModuleCase) -> TritterMemError:
    words = " ".join(str(error).split())[:300]
    if isinstance(error, SyntaxError):
        return InputError(f"{case.path}:{error.lineno}: {type(error).__name__}: {error.msg}")
    place, said = _place(error, case), f"{type(error).__name__}: {words}"
    for pattern, advice in _ADVICE:
        if pattern.search(words):
            return SimulationError(f"{place} {advice} ({said})")
    return InputError(f"{place} failed: {said}")


def _place(error: BaseException, case: ModuleCase) -> str:
    """The last line that is neither a library's nor ours: "train.py:12: `loss.item()`"."""
    frames = traceback.extract_tb(error.__traceback__)
    home = str(Path(case.path).resolve())
    outside = [frame for frame in frames if not _is_library(frame.filename)]
    found = next((frame for frame in reversed(outside) if frame.line), None)
    if found is None:
        return case.name
    file = case.path if found.filename == home else found.filename
    return f"{file}:{found.lineno}: `{found.line}`"


def _is_library(file: str) -> bool:
    return file.startswith((*_LIBRARIES, _OWN, "<"))
