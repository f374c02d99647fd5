"""Out-of-memory errors: what counts as one, what asked for memory, what an error keeps alive."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tritter_mem.devices.device import Device, Refused
from tritter_mem.errors import MeasureError
from tritter_mem.results.run import Ladder, OutOfMemory

if TYPE_CHECKING:
    import torch

_OWN = str(Path(__file__).parent.parent)
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


def first_sentences(error: BaseException) -> str:
    """The first sentences of an error, or of the first of a group, without PyTorch's advice."""
    if isinstance(error, BaseExceptionGroup):
        return first_sentences(error.exceptions[0])
    words = " ".join(str(error).split())
    return ". ".join(words.split(". ")[:2])[:200]


def release_frames(error: BaseException) -> None:
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


def find_out_of_memory(error: BaseException) -> BaseException | None:
    """The device's out-of-memory error among an error and its causes; None where there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if is_out_of_memory(cause):
            # The host's memory is another matter.
            return None if "DefaultCPUAllocator" in str(cause) else cause
        cause = cause.__cause__
    return None


def describe(
    error: BaseException, phase: str, refused: Sequence[Refused], device: Device
) -> OutOfMemory:
    """Put together what is known of an out-of-memory error.

    Args:
        error: PyTorch's.
        phase: that it came out of.
        refused: requests that PyTorch's allocator was refused; none where it was a library's.
        device: that ran out.
    """
    last = refused[-1] if refused else _without_request(device)
    operator, module = culprit(error)
    return OutOfMemory(
        operator=operator,
        module=module,
        phase=phase,
        requested_bytes=last.requested_bytes,
        allocated_bytes=last.allocated_bytes,
        reserved_bytes=last.reserved_bytes,
        limit_bytes=last.limit_bytes,
    )


def _without_request(device: Device) -> Refused:
    """A library asked the driver itself: nobody says for how much."""
    stats = device.stats()
    return Refused(
        requested_bytes=0,
        allocated_bytes=stats["allocated_bytes.all.current"],
        reserved_bytes=stats["reserved_bytes.all.current"],
        limit_bytes=device.total_bytes,
    )


def culprit(error: BaseException) -> tuple[str, str]:
    """The line that asked, as `bitlinear.py:88`, and the module, as `Transformer.layers.3.mlp`.

    Lines of PyTorch and of this tool are passed over. The module is empty outside of any.
    """
    import torch

    libraries = (str(Path(torch.__file__).parent), _OWN, "<")
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [(f, line) for f, line in frames if not f.f_code.co_filename.startswith(libraries)]
    frame, line = (own or frames)[-1]
    return f"{Path(frame.f_code.co_filename).name}:{line}", _module_path([f for f, _ in frames])


def _module_path(frames: Sequence[FrameType]) -> str:
    modules = list(_modules(frames))
    if not modules:
        return ""
    root, last = modules[0], modules[-1]
    names = {id(module): name for name, module in root.named_modules()}
    known = names.get(id(last), type(last).__name__)
    return f"{type(root).__name__}.{known}".rstrip(".")


def _modules(frames: Sequence[FrameType]) -> Iterator[torch.nn.Module]:
    from torch import nn

    for frame in frames:
        found = frame.f_locals.get("self")
        if isinstance(found, nn.Module):
            yield found
