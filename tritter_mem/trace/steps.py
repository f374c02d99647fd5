"""The phases of a step of third-party code: forward, backward, optimizer, where it has them.

Forward begins with the call of an outermost module, backward with autograd's engine, optimizer with
an optimizer's step; each lasts until the next begins. What comes before the first is in no phase. A
step that showed neither backward nor optimizer while it warmed up is one phase, `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.optim import optimizer

PhaseHook = Callable[[str], AbstractContextManager[None]]
_ENGINE = "_engine_run_backward"  # what `backward` and `grad` call
FORWARD, BACKWARD, OPTIMIZER, STEP = "forward", "backward", "optimizer", "step"


class Steps:
    """Follows what third-party code does, while it is entered.

    Args:
        phase: entered with each phase's name around it.
        after_backward: called when a backward pass is done.
    """

    def __init__(self, phase: PhaseHook, after_backward: Callable[[], None]) -> None:
        self._phase = phase
        self._after_backward = after_backward
        self._seen: set[str] = set()
        self._splits = False
        self._running = ""
        self._depth = 0
        self._current = ExitStack()
        self._watching = ExitStack()

    def __enter__(self) -> Self:
        handles = [
            hooks.register_module_forward_pre_hook(self._module_begins),
            hooks.register_module_forward_hook(self._module_ends, always_call=True),
            optimizer.register_optimizer_step_pre_hook(lambda *call: self._enter(OPTIMIZER)),
        ]
        for handle in handles:
            self._watching.callback(handle.remove)
        engine = getattr(torch.autograd, _ENGINE)
        watched = patch.object(torch.autograd, _ENGINE, self._engine(engine))
        self._watching.enter_context(watched)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watching.close()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step that counts."""
        if not self._seen & {BACKWARD, OPTIMIZER}:
            with self._phase(STEP):
                yield
            return
        self._splits = True
        try:
            if FORWARD not in self._seen:
                self._enter(FORWARD)
            yield
        finally:
            self._leave()
            self._splits = False

    def _enter(self, name: str) -> None:
        self._seen.add(name)
        if self._splits and name != self._running:
            self._leave()
            self._running = name
            self._current.enter_context(self._phase(name))

    def _leave(self) -> None:
        self._running = ""
        self._current.close()

    def _module_begins(self, module: nn.Module, args: Any) -> None:
        if self._depth == 0 and torch._C._current_graph_task_id() == -1:
            self._enter(FORWARD)
        self._depth += 1

    def _module_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1

    def _engine(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._enter(BACKWARD)
            try:
                return run(*args, **kwargs)
            finally:
                self._after_backward()

        return watched
