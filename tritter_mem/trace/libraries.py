"""What CUDA libraries allocate beside an operator's outputs, which a run on `meta` does not show.

| what | when | bytes | source |
|---|---|---|---|
| cuBLAS workspace | at the first product of a thread | 8,519,680; 33,554,432 from capability 9.0 on | `getChosenWorkspaceSize` in PyTorch's `CUDABlas.cpp`; seen once in recorded inference, twice in recorded training |
| cuBLASLt workspace | for `addmm` with a bias | none of its own: it takes the thread's cuBLAS workspace | `getCUDABlasLtWorkspace` in `CublasHandlePool.cpp`, where `TORCH_CUBLASLT_UNIFIED_WORKSPACE` is on unless it is set; to be confirmed by measurement |

A handle belongs to a thread and a stream, and the backward pass runs in a thread of its own, with
what is recomputed there. A workspace is never given back.
"""  # noqa: E501  (a table has its width)

from __future__ import annotations

from collections.abc import Callable

from tritter_mem.config.card import cublas_workspace_bytes

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

    Attributes:
        workspace_bytes: of one handle.
        held_bytes: of all handles so far.
    """

    def __init__(
        self, compute_capability: tuple[int, int], in_backward: Callable[[], bool]
    ) -> None:
        self.workspace_bytes = cublas_workspace_bytes(compute_capability)
        self._in_backward = in_backward
        self._threads: set[bool] = set()

    @property
    def held_bytes(self) -> int:
        """Workspaces of all threads so far."""
        return len(self._threads) * self.workspace_bytes

    def newly_held(self, operator: str) -> int:
        """Bytes that are held from this operator on, because it is the first of its thread."""
        if operator not in CUBLAS_OPERATORS:
            return 0
        thread = self._in_backward()
        if thread in self._threads:
            return 0
        self._threads.add(thread)
        return self.workspace_bytes
