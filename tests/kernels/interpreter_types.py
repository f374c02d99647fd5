"""Types of Triton's interpreter, made once instead of for every value: a third of its time.

Each operation of an interpreted kernel makes the type of its result anew, and with it the type of
that type's shape. They depend on nothing but their arguments, and nothing changes them. Written
against Triton 3.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.language import core
from triton.runtime import interpreter


def remember() -> None:
    """Replace what makes them in this process."""
    core._type_for_tuple_values = _shapes(core._type_for_tuple_values)
    core.block_type.__init__ = _blocks(core.block_type.__init__)
    interpreter._get_np_dtype = _dtypes(interpreter._get_np_dtype)


def _shapes(make: Callable[..., Any]) -> Callable[..., Any]:
    made: dict[tuple[int, ...], Any] = {}

    def of_values(values: Any, fields: Any = None) -> Any:
        sizes = _sizes(values)
        if fields or sizes is None:
            return make(values, fields)
        if sizes not in made:
            made[sizes] = make(values)
        return made[sizes]

    return of_values


def _blocks(make: Callable[..., None]) -> Callable[..., None]:
    made: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}

    def __init__(block: Any, element_ty: Any, shape: Any) -> None:  # noqa: N807
        sizes = _sizes(shape)
        if type(element_ty) is not tl.dtype or sizes is None:
            return make(block, element_ty, shape)
        key = (element_ty.name, sizes)
        if key not in made:
            make(block, element_ty, shape)
            made[key] = dict(vars(block))
        vars(block).update(made[key])
        return None

    return __init__


def _dtypes(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    made: dict[str, Any] = {}

    def of_type(type_: Any) -> Any:
        element = type_.element_ty if isinstance(type_, tl.block_type) else type_
        if element.name not in made:
            made[element.name] = make(element)
        return made[element.name]

    return of_type


def _sizes(values: Any) -> tuple[int, ...] | None:
    """None where one is no plain int: True would be taken for 1."""
    plain = tuple(one.value if type(one) is tl.constexpr else one for one in values)
    return plain if all(type(one) is int for one in plain) else None
