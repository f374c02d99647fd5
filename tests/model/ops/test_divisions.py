"""References whose bits kernels promise divide by tensors.

CUDA multiplies by the reciprocal of a number, and of a tensor on the CPU: another result, which the
CPU does not show.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache
from tritter_model.ops import adamw, append, rows

CPU = torch.device("cpu")


class Divisors(TorchDispatchMode):
    """What is divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith("aten.div"):
            self.found.append(args[1])
        return func(*args, **(kwargs or {}))


def quantised() -> rows.QuantisedRows:
    return rows.QuantisedRows.empty(torch.ones(3, 8), 8)


def appended(dtype: str) -> None:
    """40 tokens: whole groups of keys, and some that wait."""
    model = ModelConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=16, intermediate_size=8, vocab_size=8,
    )  # fmt: skip
    run = RunConfig(model=model, cache=CacheConfig(dtype=dtype, group_size=16), context=64)
    cache = KVCache(run, CPU).layers[0]
    append.fill(torch.randn(40, 3, 16).bfloat16(), cache, 0, 1)


X = torch.randn(3, 8)
REFERENCES: dict[str, Callable[[], Any]] = {
    "rows": lambda: rows.quantise_into.reference(X, *quantised()),
    "AdamW": lambda: adamw._adamw.reference(X.clone(), X, X.clone(), X.square(), [0.5] * 7),
    **{
        f"cache, {dtype}": lambda dtype=dtype: appended(dtype) for dtype in ("int8", "int4", "int2")
    },
}


@pytest.fixture
def divisors() -> Iterator[Divisors]:
    with Divisors() as mode:
        yield mode


@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)
def test_a_reference_divides_by_tensors(divisors: Divisors, reference: Callable[[], Any]) -> None:
    reference()
    assert divisors.found
    assert all(isinstance(x, Tensor) and x.dim() for x in divisors.found), divisors.found
