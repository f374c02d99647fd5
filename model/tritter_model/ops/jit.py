"""Triton kernels beside the code that launches them, without importing Triton before one runs.

A function under `@jit` is a Triton kernel, or a part that kernels call. Its module names Triton's
language `tl`, which is there from the first launch on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any, overload


class Kernel:
    """A kernel that has not been launched yet."""

    def __init__(self, function: FunctionType, options: dict[str, tuple[str, ...]]) -> None:
        self.function, self.options = function, options

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        """What launches the kernel over `grid`."""
        _load(self.function.__globals__)
        launch: Callable[..., Any] = self.function.__globals__[self.function.__name__][grid]
        return launch


@overload
def jit(function: Callable[..., Any]) -> Any: ...


@overload
def jit(**options: tuple[str, ...]) -> Callable[[Callable[..., Any]], Any]: ...


def jit(function: Any = None, **options: tuple[str, ...]) -> Any:
    """Make a kernel of a function.

    Args:
        function: the kernel.
        options: what `triton.jit` takes: `do_not_specialize` names the numbers, and
            `do_not_specialize_on_alignment` the addresses, that change from launch to launch and
            are not to compile the kernel anew.
    """
    if function is None:
        return partial(jit, **options)
    return Kernel(function, options)


def _load(module: dict[str, Any]) -> None:
    """Give a module Triton's language, and Triton's own functions in place of its kernels."""
    triton = _triton()
    module["tl"] = triton.language
    for name, value in list(module.items()):
        if isinstance(value, Kernel):
            home = value.function.__globals__
            if home is not module:
                _load(home)
                module[name] = home[value.function.__name__]
            else:
                module[name] = triton.jit(value.function, **value.options)


@cache
def _triton() -> Any:
    try:
        import triton
        import triton.language
    except ImportError as error:
        raise RuntimeError(
            "the kernels need triton: install it, or set TRITTER_KERNELS=reference to run without"
        ) from error
    if interpreted():
        from tritter_model.ops import interpreter

        interpreter.repair()
    return triton


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for the compiler; it runs kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def capability() -> int:
    """What kernels are compiled for, 90 for compute capability 9.0; 0 for the interpreter."""
    if interpreted():
        return 0
    return int(_triton().runtime.driver.active.get_current_target().arch)


def block(size: int) -> int:
    """The smallest power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()
