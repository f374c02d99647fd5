"""What CUDA libraries allocate beside an operator's outputs, which a run on `meta` does not show.

| what | when | bytes | source, PyTorch 2.11 |
|---|---|---|---|
| cuBLAS workspace | at the first product of a handle | 33,554,432 on capability 9.0, else 8,519,680 | `parseChosenWorkspaceSize` in `CublasHandlePool.cpp` |
| cuBLASLt workspace | at a handle's first product with a bias of one row, or of float8 | 1,048,576, beside the cuBLAS workspace | `parseCUDABlasLtWorkspaceSize`; `isInputCompliesAddmmCudaLt` in `Blas.cpp` |

A handle belongs to a thread and a stream. The backward pass runs in a thread of its own, with what is
recomputed there; a CUDA graph is captured on a stream of its own. A workspace is never given back.

Confirmed, sizes and conditions, against PyTorch 2.11's own host code and CUDA allocator, without a GPU
(`benchmarks/standin`): capabilities 8.0, 8.9, 9.0, 10.0 and 12.0, with no environment variable set.
"""  # noqa: E501  (a table has its width)

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tritter_mem.config.card import CUBLASLT_BYTES, GpuCard
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
    """Tells, operator by operator, what libraries newly hold.

    Args:
        card: that is simulated.
        in_backward: tells whether autograd runs its backward pass now.

    Attributes:
        card: that is simulated.
        held_bytes: of all workspaces so far.
    """

    def __init__(self, card: GpuCard, in_backward: Callable[[], bool]) -> None:
        self.card = card
        self.held_bytes = 0
        self._in_backward = in_backward
        self._handles: set[tuple[str, bool, bool]] = set()

    def newly_held(
        self, operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[tuple[str, int]]:
        """Names and bytes of workspaces that are held from this call of an operator on.

        Args:
            operator: such as `aten.addmm.default`.
            args: its positional arguments.
            kwargs: its named arguments.
        """
        if operator not in CUBLAS_OPERATORS:
            return
        yield from self._first(CUBLAS, self.card.cublas_workspace_bytes)
        if operator in _LT and _LT[operator](*args, **kwargs):
            yield from self._first(CUBLASLT, CUBLASLT_BYTES)

    def _first(self, library: str, workspace_bytes: int) -> Iterator[tuple[str, int]]:
        """The workspace, where this is the first call of the library's handle."""
        handle = library, self._in_backward(), bool(labels.current_place())
        if handle not in self._handles:
            self._handles.add(handle)
            self.held_bytes += workspace_bytes
            yield library, workspace_bytes


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
