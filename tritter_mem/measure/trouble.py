"""Why CUDA cannot be used, in one line, and what to do."""

from __future__ import annotations

import os

from tritter_mem.measure.environment import cuda_of_torch, driver_version

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
