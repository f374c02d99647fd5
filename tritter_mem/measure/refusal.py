"""An out-of-memory error on a device, as the record holds it: what asked, and for how much."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tritter_mem.measure.meter import Meter, Refused
from tritter_mem.measure.out_of_memory import is_out_of_memory
from tritter_mem.results import OutOfMemory

if TYPE_CHECKING:
    import torch

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
