"""What CUDA libraries allocate beside an operator's outputs, which a run on `meta` does not show.

| what | when | bytes | source |
|---|---|---|---|
| cuBLAS workspace | at the first product of a thread | 8,519,680; 33,554,432 from capability 9.0 on | `getChosenWorkspaceSize` in PyTorch's `CUDABlas.cpp`; seen once in recorded inference, twice in recorded training |
| cuBLASLt workspace | for `addmm` with a bias | none of its own: it takes the thread's cuBLAS workspace | `getCUDABlasLtWorkspace` in `CublasHandlePool.cpp`, where `TORCH_CUBLASLT_UNIFIED_WORKSPACE` is on unless it is set; to be confirmed by measurement |

A handle belongs to a thread and a stream. The backward pass runs in a thread of its own, with what is
recomputed there; a CUDA graph is captured on a stream of its own. A workspace is never given back.
"""  # noqa: E501  (a table has its width)

from __future__ import annotations

from collections.abc import Callable

from tritter_mem.config.card import cublas_workspace_bytes
from tritter_model import labels

CUBLAS_OPERATORS = frozenset({
    "aten.mm.default", "aten.mm.out", "aten.addmm.default", "aten.addmm.out",
    "aten.bmm.default", "aten.bmm.out", "aten.baddbmm.default", "aten.baddbmm.out",
    "aten.mv.default", "aten.addmv.default", "aten.dot.default",
})  # fmt: skip
"""Operators that call cuBLAS on a GPU."""


class Libraries:
    """Tells, operator by operator, what libraries newly hold.

    Args:
        compute_capability: of the card that is simulated, major and minor.
        in_backward: tells whether autograd runs its backward pass now.
        workspace_bytes: of one handle, where it was measured; default: by the capability.

    Attributes:
        workspace_bytes: of one handle.
        held_bytes: of all handles so far.
    """

    def __init__(
        self,
        compute_capability: tuple[int, int],
        in_backward: Callable[[], bool],
        workspace_bytes: int | None = None,
    ) -> None:
        self.workspace_bytes = workspace_bytes or cublas_workspace_bytes(compute_capability)
        self._in_backward = in_backward
        self._handles: set[tuple[bool, bool]] = set()

    @property
    def held_bytes(self) -> int:
        """Workspaces of all handles so far."""
        return len(self._handles) * self.workspace_bytes

    def newly_held(self, operator: str) -> int:
        """Bytes that are held from this operator on, because it is the first of its handle."""
        if operator not in CUBLAS_OPERATORS:
            return 0
        handle = self._in_backward(), bool(labels.current_place())
        if handle in self._handles:
            return 0
        self._handles.add(handle)
        return self.workspace_bytes
