"""What CUDA libraries allocate beside an operator's outputs, which a run on `meta` does not show.

cuBLAS takes a workspace at the first product of a handle and keeps it. A product with a bias of one
row, or of float8, goes to cuBLASLt (`isInputCompliesAddmmCudaLt` in `Blas.cpp`), which has a
smaller one of its own or takes that of cuBLAS. PyTorch's release decides, and from 2.15 on each
call has its own: `torch_release.py` has the sizes.

A handle belongs to a thread and a stream. The backward pass runs in a thread of its own, with what
is recomputed there; a CUDA graph is captured on a stream of its own.

Confirmed, sizes and conditions, against the host code and the CUDA allocator of PyTorch 2.11 to
2.15, without a GPU (`benchmarks/standin`), with no environment variable set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tritter_mem import torch_release
from tritter_mem.config.cards import GpuCard
from tritter_model import labels

if TYPE_CHECKING:
    from torch import Tensor

CUBLAS, CUBLASLT = "cuBLAS workspace", "cuBLASLt workspace"
CUBLAS_OPERATORS = frozenset({
    "aten.mm.default", "aten.mm.out", "aten.mm.dtype", "aten.addmm.default", "aten.addmm.out",
    "aten.addmm.dtype", "aten.addmm_.default", "aten._addmm_activation.default",
    "aten.bmm.default", "aten.bmm.out", "aten.bmm.dtype", "aten.baddbmm.default",
    "aten.baddbmm.out", "aten.baddbmm_.default", "aten.addbmm.default", "aten.mv.default",
    "aten.addmv.default", "aten.addmv_.default", "aten.dot.default", "aten.vdot.default",
    "aten._int_mm.default", "aten._scaled_mm.default",
})  # fmt: skip
"""Operators that call cuBLAS, or cuBLASLt, on a GPU."""


class Libraries:
    """Tells, operator by operator, what libraries allocate.

    Args:
        card: that is simulated.
        in_backward: tells whether autograd runs its backward pass now.

    Attributes:
        card: that is simulated.
        keep: whether what they allocate stays; it goes with the call otherwise.
    """

    def __init__(self, card: GpuCard, in_backward: Callable[[], bool]) -> None:
        self.card = card
        self.keep = torch_release.keeps_workspaces()
        self._in_backward = in_backward
        self._handles: set[tuple[str, bool, bool]] = set()

    def newly_held(
        self, operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[tuple[str, int]]:
        """Names and bytes of workspaces that this call of an operator takes.

        Args:
            operator: such as `aten.addmm.default`.
            args: its positional arguments.
            kwargs: its named arguments.
        """
        if operator not in CUBLAS_OPERATORS:
            return
        with_lt = operator in _LT and _LT[operator](*args, **kwargs)
        if self.keep or not with_lt:
            yield from self._first(CUBLAS, self.card.cublas_workspace_bytes)
        if with_lt and torch_release.cublaslt_workspace_bytes():
            yield from self._first(CUBLASLT, torch_release.cublaslt_workspace_bytes())

    def _first(self, library: str, workspace_bytes: int) -> Iterator[tuple[str, int]]:
        """The workspace, where this is the first call of a handle that keeps it."""
        handle = library, self._in_backward(), bool(labels.current_place())
        if handle not in self._handles:
            if self.keep:
                self._handles.add(handle)
            yield library, workspace_bytes


def is_workspace(operator: str) -> bool:
    """Whether an event's operator is a library's workspace: `cuBLAS workspace, aten.mm.default`."""
    return operator.startswith((f"{CUBLAS}, ", f"{CUBLASLT}, "))


def _adds_row(
    bias: Tensor, left: Tensor, right: Tensor, *rest: Any, beta: float = 1, **more: Any
) -> bool:
    """Whether `addmm` is one call of cuBLASLt: a bias [N] or [1, N] to [M, K] times [K, N]."""
    return (
        beta == 1
        and bias.is_contiguous()
        and bias.shape[-1:] == right.shape[1:]
        and bias.numel() == right.shape[1]
        and min(right.shape) > 1
        and right.is_floating_point()
    )


def _activates(bias: Tensor, left: Tensor, right: Tensor, **more: Any) -> bool:
    """`addmm` with an activation is one call for a whole matrix as bias too."""
    return _adds_row(bias, left, right, **more) or (bias.dim() == 2 and min(right.shape) > 1)


_LT: dict[str, Callable[..., bool]] = {
    "aten.addmm.default": _adds_row,
    "aten.addmm.dtype": _adds_row,
    "aten.addmm.out": _adds_row,
    "aten._addmm_activation.default": _activates,
    "aten._scaled_mm.default": lambda *args, **kwargs: True,
}
