"""What libraries take inside PyTorch's allocator, beside the tensors of the model."""

from __future__ import annotations

from tritter_mem.config import pytorch
from tritter_mem.config.card import GpuCard
from tritter_mem.config.schema import Profile


def captures(profile: Profile) -> bool:
    """Whether decode replays a CUDA graph of its step."""
    return profile.workload.cuda_graph and profile.workload.new_tokens > 1


def library_bytes(profile: Profile, card: GpuCard) -> int:
    """Workspaces of cuBLAS: one a handle and stream, and each thread has its own handle.

    Training has two, because the backward pass runs in a thread of its own; so has a decode step
    that is captured, on a stream of its own. The vision tower's products have a bias, for which
    cuBLASLt may take one more in the first thread. Where PyTorch gives a workspace back after each
    call, the plan takes it that one is there at the peak, which is one too many for some peaks.
    """
    if not pytorch.keeps_workspaces():
        return card.cublas_workspace_bytes
    work = profile.workload
    handles = 2 if work.mode == "training" or captures(profile) else 1
    with_bias = 0 if profile.model.vision is None else pytorch.cublaslt_workspace_bytes()
    return handles * card.cublas_workspace_bytes + with_bias
