"""Where recorded allocations come from, as the allocator knows it: streams and private pools."""

from __future__ import annotations

from tritter_mem.allocator.blocks import PrivateStream, Stream
from tritter_mem.allocator.simulator import CachingAllocator
from tritter_model.labels import GRAPH_POOL, SIDE_STREAM

_STREAMS: dict[str, Stream] = {"": 0, SIDE_STREAM: 1, GRAPH_POOL: PrivateStream(1, (1, 0))}


class Places:
    """Gives each place its stream, and does what PyTorch does where a capture begins.

    Before it captures, `torch.cuda.graph` gives the cache back to the driver: segments that are one
    free block go (torch/cuda/graphs.py). Those of a private pool never do, as long as it lives.

    Args:
        allocator: what the allocations are to be served by.
    """

    def __init__(self, allocator: CachingAllocator) -> None:
        self._allocator, self._capturing = allocator, False

    def stream(self, place: str) -> Stream:
        """The stream to ask for, in front of an allocation from a place."""
        begins = place == GRAPH_POOL and not self._capturing
        self._capturing = place == GRAPH_POOL
        if begins:
            self._allocator.empty_cache()
        return _STREAMS[place]
