"""What libraries take inside PyTorch's allocator, beside the tensors of the model."""

from __future__ import annotations

from tritter_mem.config.card import GpuCard, cublas_workspace_bytes
from tritter_mem.config.schema import Profile


def cublas_bytes(profile: Profile, card: GpuCard) -> int:
    """Workspaces of cuBLAS: one a handle and stream, and each thread has its own handle.

    Training has two, because the backward pass runs in a thread of its own.
    """
    handles = 2 if profile.workload.mode == "training" else 1
    return handles * cublas_workspace_bytes(card.compute_capability)
