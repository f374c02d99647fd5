"""Every kernel of the bundled model, launched at 7B shapes on tensors that have no memory."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import attention_cases, cache_cases, decode_cases, kernel_cases
from benchmarks.kernel_cases import Case


def cases() -> Iterator[Case]:
    """Every operator."""
    yield from kernel_cases.cases()
    yield from cache_cases.cases()
    yield from attention_cases.cases()
    yield from decode_cases.cases()
