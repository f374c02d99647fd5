"""What is an out-of-memory error, and how to let go of what the code that raised it held."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping

from tritter_mem.errors import MeasureError
from tritter_mem.results import Ladder

_SAYS_SO = re.compile(
    r"CUDA out of memory|(?:CUDA (?:driver )?error|Triton Error \[CUDA\]): out of memory|"
    r"CU(?:BLAS|DNN|SOLVER|SPARSE|FFT)_(?:\w+_)?ALLOC(?:ATION)?_FAILED|"
    r"DefaultCPUAllocator: (?:can't allocate|not enough) memory"
)


class LadderFailedError(MeasureError):
    """Memory ran out on every rung; its problems say on which, how memory stood, what would help.

    Attributes:
        ladder: the rungs.
        components: what was alive when memory last ran out, in bytes by component.
    """

    def __init__(self, *problems: str, ladder: Ladder, components: Mapping[str, int]) -> None:
        super().__init__(*problems)
        self.ladder, self.components = ladder, components


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left.

    PyTorch's own class; what CUDA, its libraries, Triton and the CPU's allocator raise as
    `RuntimeError`; a ladder inside that failed; a group of nothing but such errors.
    """
    import torch

    if isinstance(error, BaseExceptionGroup):
        return all(map(is_out_of_memory, error.exceptions))
    if isinstance(error, torch.OutOfMemoryError | LadderFailedError):
        return True
    return isinstance(error, RuntimeError) and _SAYS_SO.search(str(error)) is not None


def said(error: BaseException) -> str:
    """The first sentences of an error, or of the first of a group, without PyTorch's advice."""
    if isinstance(error, BaseExceptionGroup):
        return said(error.exceptions[0])
    words = " ".join(str(error).split())
    return ". ".join(words.split(". ")[:2])[:200]


def let_go(error: BaseException) -> None:
    """Clear the local variables of the frames that an error came through: they hold tensors.

    Frames that still run keep theirs. The traceback keeps its lines.
    """
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, those that it came from, and those that it is a group of."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]
            if isinstance(one, BaseExceptionGroup):
                waiting += one.exceptions
