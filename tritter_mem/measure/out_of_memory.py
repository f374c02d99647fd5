"""What is an out-of-memory error, and how to let go of what the code that raised it held."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator

_SAYS_SO = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|"
    r"DefaultCPUAllocator: (?:can't allocate|not enough) memory"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left.

    PyTorch's own class, and what CUDA, cuBLAS and the CPU's allocator raise as `RuntimeError`.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _SAYS_SO.search(str(error)) is not None


def said(error: BaseException) -> str:
    """The first sentences of an error, without the advice that PyTorch adds."""
    words = " ".join(str(error).split())
    return ". ".join(words.split(". ")[:2])[:200]


def let_go(error: BaseException) -> None:
    """Clear the local variables of the frames that an error came through: they hold tensors.

    Frames that still run keep theirs. The traceback keeps its lines.
    """
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came from."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]
