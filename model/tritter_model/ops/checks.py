"""Refusing tensors that an operator would compute wrongly with, before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def expect(
    name: str, tensor: Tensor, dtypes: torch.dtype | tuple[torch.dtype, ...], *shape: int
) -> None:
    """Check a tensor's type and shape; -1 stands for any size.

    Raises:
        ValueError: naming the tensor, what was found and what is allowed.
    """
    allowed = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    fits = len(shape) == tensor.dim() and all(
        wanted in (-1, found) for wanted, found in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in allowed:
        sizes = ", ".join("any" if size == -1 else str(size) for size in shape)
        raise ValueError(
            f"got {name} of {_name(tensor.dtype)} {list(tensor.shape)},"
            f" expected {' or '.join(map(_name, allowed))} [{sizes}]"
        )


MOST_HEADS = 65_535
"""Programs that CUDA launches along the second axis of a grid."""


def expect_heads(sequences: int, heads: int) -> None:
    """Check that a kernel with a program for each head of each sequence can be launched.

    Raises:
        ValueError: so many heads in all.
    """
    if sequences * heads > MOST_HEADS:
        raise ValueError(
            f"got {sequences} sequences of {heads} heads, {sequences * heads} heads in all,"
            f" expected {MOST_HEADS} in all; take fewer sequences at a time"
        )


def expect_adjacent(name: str, tensor: Tensor) -> None:
    """Check that the elements of each row lie side by side; the rows may lie apart.

    Raises:
        ValueError: they do not.
    """
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"got {name} with strides {tensor.stride()}, expected rows whose elements are"
            " adjacent; call contiguous() first"
        )


def expect_contiguous(name: str, tensor: Tensor) -> None:
    """Check that a tensor has no gaps.

    Raises:
        ValueError: it has.
    """
    if not tensor.is_contiguous():
        raise ValueError(
            f"got {name} with strides {tensor.stride()}, expected contiguous;"
            " call contiguous() first"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
