"""Why CUDA cannot be used, in one line, and what to do."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tritter_mem.devices.cuda import Meter, Refused
from tritter_mem.devices.environment import cuda_of_torch, driver_version
from tritter_mem.errors import MeasureError
from tritter_mem.results.run import Ladder, OutOfMemory

if TYPE_CHECKING:
    import torch

NO_CUDA = "no CUDA device: nothing was measured"
NO_CUDA_BUILD = (
    "this PyTorch is built without CUDA: nothing was measured; install a build with CUDA, as "
    "pytorch.org says"
)
NO_SUCH = "there is no {device}{shown}: `nvidia-smi -L` lists the devices"
_TROUBLES = {
    "not compiled with cuda": NO_CUDA_BUILD,
    "too old": (
        "the NVIDIA driver ({driver}) is too old for this PyTorch, which is built for CUDA {cuda}: "
        "update the driver, or install a PyTorch that is built for an older CUDA"
    ),
    "no cuda gpus": "no CUDA device{shown}: nothing was measured",
    "no nvidia driver": NO_CUDA,
    "invalid device ordinal": NO_SUCH,
    "invalid device id": NO_SUCH,
    "gpu device may be out of range": NO_SUCH,
    "busy or unavailable": (
        "{device} is busy: another process has it to itself (compute mode exclusive), or it is "
        "being reset; end that process, or choose another device (--device cuda:1)"
    ),
    "out of memory": (
        "{device} is full: other processes leave no room for a CUDA context; end them, or choose "
        "another device (--device cuda:1)"
    ),
}


def explain_cuda(said: str, index: int = 0) -> str:
    """Turn what PyTorch says when CUDA cannot be used into one line with a way out.

    Args:
        said: PyTorch's error.
        index: the device that was asked for.
    """
    low = said.lower()
    advice = next((text for sign, text in _TROUBLES.items() if sign in low), None)
    if advice is None:
        first = said.strip().splitlines()[:1]
        return f"CUDA cannot be used: {' '.join(first)[:300]}"
    driver = driver_version() or "whose version cannot be read"
    return advice.format(
        device=f"cuda:{index}", driver=driver, cuda=cuda_of_torch(), shown=_shown()
    )


def _shown() -> str:
    """What hides devices from CUDA, where something does."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" among those that CUDA_VISIBLE_DEVICES={visible!r} shows"


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


_OWN = str(Path(__file__).parent.parent)


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
    error: BaseException, phase: str, refused: Sequence[Refused], meter: Meter
) -> OutOfMemory:
    """Put together what is known of an out-of-memory error.

    Args:
        error: PyTorch's.
        phase: that it came out of.
        refused: requests that PyTorch's allocator saw refused; none where a library's was.
        meter: the device.
    """
    last = refused[-1] if refused else _without_request(meter)
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


def _without_request(meter: Meter) -> Refused:
    """A library asked the driver itself: nobody says for how much."""
    stats = meter.stats()
    return Refused(
        requested_bytes=0,
        allocated_bytes=stats["allocated_bytes.all.current"],
        reserved_bytes=stats["reserved_bytes.all.current"],
        limit_bytes=meter.total_bytes,
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
