"""The card that benchmarks run on, as one value, so that another can stand for it.

Work that compiles ahead puts its tensors on `meta` and takes the card's numbers from whoever asked.
`python -m benchmarks.card` prints what is there as JSON. Exit code 3 without a CUDA device.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING

from tritter_mem.devices.cuda import is_standin

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Card:
    """What benchmarks ask of a card.

    Attributes:
        capability: 90 for compute capability 9.0.
        device: where tensors go: `cuda`, or `meta` and `cpu` in its place.
        standin: whether CUDA's libraries are stand-ins, over which nothing computes.
    """

    name: str
    capability: int
    multiprocessors: int
    l2_cache_bytes: int
    device: str = "cuda"
    standin: bool = False


def here() -> Card:
    """The card that is worked with: the one that stands for it, or the machine's first."""
    return _instead[-1] if _instead else _first()


def device() -> torch.device:
    """Where tensors go."""
    import torch

    return torch.device(here().device)


@contextmanager
def standing_for(card: Card) -> Iterator[None]:
    """Work with this card inside."""
    _instead.append(card)
    try:
        yield
    finally:
        _instead.pop()


_instead: list[Card] = []


@cache
def _first() -> Card:
    import torch

    found = torch.cuda.get_device_properties(0)
    return Card(
        name=found.name,
        capability=10 * found.major + found.minor,
        multiprocessors=found.multi_processor_count,
        l2_cache_bytes=found.L2_cache_size,
        standin=is_standin(),
    )


def main() -> int:
    """Print the card, and the version of PyTorch; the exit code."""
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device; this script needs one", file=sys.stderr)
        return 3
    print(json.dumps({"card": asdict(_first()), "torch": torch.__version__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
