"""Found first on the path of every Python of a rehearsal: sees that torch is watched when it comes.

It runs in the user's environment, where this project is not installed, and imports nothing of it.
The environment's own `sitecustomize` runs as if this one were not there.
"""

import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType

_HERE = os.path.dirname(os.path.abspath(__file__))
_FOLDERS = (_HERE, os.path.join(_HERE, "..", "..", "models"))


def _load(name: str) -> ModuleType:
    """A file beside this one or of the models, under a name that is nobody else's."""
    paths = [os.path.join(folder, f"{name}.py") for folder in _FOLDERS]
    spec = importlib.util.spec_from_file_location(
        f"_tritter_rehearsal_{name}", next(filter(os.path.exists, paths))
    )
    assert spec is not None  # noqa: S101
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _leave_the_path() -> None:
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _HERE]


def _run_the_other() -> None:
    """The sitecustomize that would have run."""
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


_leave_the_path()
if os.environ.get("STANDIN_SESSION"):
    _process = _load("watched_process")
    _process.watch(_process.Inside(*map(_load, _process.Inside._fields)))
_run_the_other()
