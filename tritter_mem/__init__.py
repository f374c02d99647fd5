"""What GPU memory a long-context, quantised language model will use, why, and what to change.

Nothing heavy is imported here: names load on first use, so that planning never pays for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tritter_mem.version import __version__

if TYPE_CHECKING:
    from tritter_mem.api import plan as plan
    from tritter_mem.api import profile as profile
    from tritter_mem.api import simulate as simulate
    from tritter_mem.errors import MemoryBudgetExceeded as MemoryBudgetExceeded
    from tritter_mem.measure.tracker import MemorySnapshot as MemorySnapshot
    from tritter_mem.measure.tracker import MemoryTracker as MemoryTracker
    from tritter_mem.oom.manager import MemoryManager as MemoryManager
    from tritter_mem.planner.result import calculate_memory_budget as calculate_memory_budget
    from tritter_mem.recordings.replay_snapshot import replay as replay
    from tritter_mem.rehearsal.rehearse import rehearse as rehearse

_HOMES = {
    "MemoryBudgetExceeded": "tritter_mem.errors",
    "MemoryManager": "tritter_mem.oom.manager",
    "MemorySnapshot": "tritter_mem.measure.tracker",
    "MemoryTracker": "tritter_mem.measure.tracker",
    "calculate_memory_budget": "tritter_mem.planner.result",
    "plan": "tritter_mem.api",
    "profile": "tritter_mem.api",
    "rehearse": "tritter_mem.rehearsal.rehearse",
    "replay": "tritter_mem.recordings.replay_snapshot",
    "simulate": "tritter_mem.api",
}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604  (every key is a string)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
