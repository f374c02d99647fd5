"""What an allocation is for: labels that the model puts on its memory and a recorder reads.

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

_stack = [ACTIVATIONS]


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
