"""What an allocation is for, and where from: what the model says and a recorder reads.

The model knows best whether a tensor is a weight, a cache or scratch. It says so by allocating
under `label(...)`; a recorder that sees the allocation asks `current()`. Nothing here costs more
than an attribute write, and without a recorder nothing reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

WEIGHTS = "weights"
EMBEDDINGS = "embeddings"
VISION = "vision"
KV_CACHE = "kv_cache"
ACTIVATIONS = "activations"
LOGITS = "logits"
GRADIENTS = "gradients"
OPTIMIZER_STATE = "optimizer_state"
WORKSPACE = "workspace"

SIDE_STREAM = "side stream"
"""A stream beside the device's own: the allocator keeps its blocks apart."""
GRAPH_POOL = "graph pool"
"""The private pool of a CUDA graph that is captured on the side stream."""

_stack = [ACTIVATIONS]
_places = [""]


def current() -> str:
    """The innermost label; `activations` where none is set."""
    return _stack[-1]


@contextmanager
def label(name: str) -> Iterator[None]:
    """Label every allocation made inside."""
    _stack.append(name)
    try:
        yield
    finally:
        _stack.pop()


def current_place() -> str:
    """Where allocations come from: `SIDE_STREAM`, `GRAPH_POOL`, or "", the device's own stream."""
    return _places[-1]


@contextmanager
def place(name: str) -> Iterator[None]:
    """Say where allocations come from that are made inside."""
    _places.append(name)
    try:
        yield
    finally:
        _places.pop()
