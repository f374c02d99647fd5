"""Operations of the operators that run: multiplications and additions, by phase.

Counted are matrix products and attention, whose two products count for the query-key pairs that
the mask lets through; element by element work is not. PyTorch's table
(`torch.utils.flop_counter`) gives the `aten` operators, the table below those of the bundled
model; their backward operators count their own products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tritter_model.kv_cache import LayerCache

Count = Callable[..., int]


class FlopCounter(TorchDispatchMode):
    """Counts operations while it is entered.

    Attributes:
        by_phase: operations of each phase that was entered, and of what lies outside of any under
            the empty name.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_phase: dict[str, int] = {}
        self._phase = ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `operators.OperatorMode`

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (found := _operations(func, args, kwargs, result)) != 0:
            self.by_phase[self._phase] = self.by_phase.get(self._phase, 0) + found
        return result

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what runs inside to a phase."""
        outer, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = outer


def _operations(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    if func.namespace == "tritter":
        count = OPERATIONS.get(func.overloadpacket.__name__)
        return 0 if count is None else count(*args)
    formula = flop_registry.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def visible_pairs(queries: int, position: int, causal: bool, window: int, sinks: int) -> int:
    """Query-key pairs of one sequence that a mask lets through.

    Args:
        queries: how many there are; the keys are those before them and their own.
        position: of the first query.
        causal: whether a query sees only the keys up to its own; else it sees all.
        window: how many keys, up to its own, a causal query sees; 0: all.
        sinks: first keys, which are seen beside the window.
    """
    end = position + queries
    if not causal:
        return queries * end
    seen = _sum_up_to(end) - _sum_up_to(position)
    if not window:
        return seen
    reach = window + sinks
    return seen - (_sum_up_to(end - reach) - _sum_up_to(position - reach))


def _sum_up_to(n: int) -> int:
    """1 + 2 + ... + n; 0 where n is negative."""
    return n * (n + 1) // 2 if n > 0 else 0


def _attention(products: int, q: Tensor, batch: int, *mask: Any) -> int:
    """So many products of head_dim multiply-adds for each visible pair and query head."""
    pairs = batch * visible_pairs(q.shape[0] // batch, 0, *mask)
    return 2 * products * q.shape[1] * q.shape[2] * pairs


def _cached_attention(
    qkv: Tensor, tensors: list[Tensor], layout: list[int], position: int, heads: int, *_: Any
) -> int:
    cache = LayerCache.of(tensors, layout)
    queries = qkv.shape[0] // cache.batch
    pairs = visible_pairs(queries, position, True, cache.window, cache.sinks)
    return 4 * cache.batch * heads * qkv.shape[2] * pairs


OPERATIONS: dict[str, Count] = {
    "ternary_linear": lambda codes, *rest: 2 * codes.numel() * rest[-1].shape[1],
    "ternary_grad_input": lambda grad, *rest: 2 * grad.numel() * rest[-1].shape[1],
    "grad_weight": lambda grad, x, *_: 2 * grad.numel() * x.shape[1],
    "attention": lambda q, k, v, *mask: _attention(2, q, *mask[:4]),
    # The scores again, and one product for each of the gradients of values, weights, keys, queries.
    "attention_backward": lambda grad, q, k, v, out, lse, *mask: _attention(5, q, *mask[:4]),
    "prefill_attention": _cached_attention,
    "decode_attention": _cached_attention,
}
"""What operators of the bundled model count, from their arguments; the others have no product."""
