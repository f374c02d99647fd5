"""What libraries take inside PyTorch's allocator, beside the tensors of the model."""

from __future__ import annotations

from tritter_mem.config.gpus import GpuCard
from tritter_mem.config.schema import Profile

CUBLAS_BYTES = 8_519_680
CUBLAS_BYTES_FROM_HOPPER = 33_554_432


def cublas_bytes(profile: Profile, card: GpuCard) -> int:
    """Workspaces of cuBLAS: one a handle and stream, and each thread has its own handle.

    Training has two, because the backward pass runs in a thread of its own. The sizes are those of
    PyTorch's `at::cuda::getChosenWorkspaceSize` and were seen in recordings: 4096 * 2 + 16 * 8 KiB
    and 8 MiB below compute capability 9.0, 32 MiB from there on.
    """
    handles = 2 if profile.workload.mode == "training" else 1
    hopper = card.compute_capability >= (9, 0)
    return handles * (CUBLAS_BYTES_FROM_HOPPER if hopper else CUBLAS_BYTES)
