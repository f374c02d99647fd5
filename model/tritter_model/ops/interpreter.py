"""What Triton's interpreter gets wrong, put right, so that kernels can be checked on a CPU.

Imported where TRITON_INTERPRET=1 is set, and only then. Written against Triton 3.6.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from triton.runtime import interpreter


def repair() -> None:
    """Let loops run to bounds given at run time, and bfloat16 be rounded and multiplied.

    NumPy 2.4 no longer turns an array of one element into an int. The interpreter's own cast to
    bfloat16 cuts off instead of rounding, and its own dot takes the bits of bfloat16 for integers.
    Half of its time goes into patching Triton's language again at each call of a function.
    """
    interpreter._patch_lang_tensor = _patch_and_count
    interpreter.InterpreterBuilder.cast_impl = _cast
    for name in ("create_fp_trunc", "create_si_to_fp", "create_ui_to_fp"):
        setattr(interpreter.InterpreterBuilder, name, _cast)
    interpreter.InterpreterBuilder.create_dot = _dot
    interpreter.InterpretedFunction.__call__ = _call


_patch = interpreter._patch_lang_tensor
_convert = interpreter.InterpreterBuilder.cast_impl
_multiply = interpreter.InterpreterBuilder.create_dot


def _patch_and_count(tensor: Any, scope: Any) -> None:
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _cast(builder: Any, source: Any, to: Any) -> Any:
    if to.scalar != tl.bfloat16 or source.dtype.scalar == tl.bfloat16:
        return _convert(builder, source, to)
    rounded = torch.from_numpy(source.data.astype("float32")).to(torch.bfloat16)
    return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)


def _dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
    wide = [_convert(builder, x, tl.float32) if x.dtype == tl.bfloat16 else x for x in (a, b)]
    return _multiply(builder, *wide, *rest)


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    languages = [value for value in function.fn.__globals__.values() if value in (tl, tl.core)]
    if any(tl.core.is_builtin(language.load) for language in languages):
        interpreter._patch_lang(function.fn)
    return function.rewrite()(*args, **kwargs)
