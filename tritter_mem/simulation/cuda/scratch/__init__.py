"""What operators allocate inside on CUDA and let go before they return.

A run on `meta` shows an operator's results alone. The rules here add what its CUDA kernel needs
beside them, where that grows with the tensors.

| operator | inside | rule |
|---|---|---|
| sums, means, norms, variances, extrema, `all`, `any` over much | a partial result for each block of threads, and counters; sums of integers: the input as int64 | `reductions.py` |
| `_softmax_backward_data` | gradient times output | `elementwise.py` |
| `mse_loss`, `smooth_l1_loss`, `huber_loss` that are reduced | the loss of each element, twice | `elementwise.py` |
| `_foreach_norm`, as in `clip_grad_norm_` | a float32 for each tensor's chunks of 65,536 elements | `elementwise.py` |
| `_safe_softmax` | which scores are infinite, and whole rows of them | `elementwise.py` |
| `native_layer_norm_backward`, `_fused_rms_norm_backward` over more than 65,536 rows | sums over 32 rows each, then as any sum | `elementwise.py` |
| `mm`, `addmm`, `bmm` and their kin | a copy of a matrix in which neither rows nor columns lie side by side | `products.py` |
| flash attention | for few queries: sums and outputs of each part of the keys | `attention.py` |
| flash attention, backward | output and its gradient where they are not [B, T, H, D] in memory; gradient of the queries in float32, a float32 a query and head; with grouped heads, gradients of keys and values for every head | `attention.py` |
| cuDNN's attention | its workspace: for one query, sums and outputs of each part of the keys | `attention.py` |
| cuDNN's attention, backward | its workspace: gradient of the queries in float32, a float32 a query and head; with grouped heads, gradients of keys and values for every head; a copy of the output's gradient whose channels do not lie side by side | `attention.py` |
| efficient attention | from heads of over 128 of half types: the output in float32 | `attention.py` |
| efficient attention, backward | a float32 a query and head; gradient of the queries in float32 in whole blocks, with a lock and a counter each; from heads of over 128 of half types those of keys and values; with grouped heads (from PyTorch 2.14 on) theirs for every head | `attention.py` |
| `embedding_dense_backward` over 3,072 tokens, `_embedding_bag_backward` | indices sorted and in their old order, offsets of segments, and a float32 row for each partial sum: tokens / 10 + min(tokens, rows) of them | `indexing.py` |
| `index_put` and its kin, accumulating | four arrays of indices, and what a sort of two of them takes | `indexing.py` |
| `sort` | rows up to 4,096: the numbers of a row; over that by one of three ways, with what cub's sorts take | `sorting.py` |
| `topk`, `multinomial` | counts for each block of a row's elements; random numbers as many as probabilities | `sorting.py` |

Confirmed against PyTorch 2.11's own host code and CUDA allocator, without a GPU, on an H100's figures:
`python -m benchmarks.standin.operators` compares call by call, and tests hold the rules against what it
recorded. cuDNN's attention was measured on an H200. Not covered: cub's temporary storage beyond its double buffers, which depends on how many
blocks fit a multiprocessor (some KiB, below 2% of the buffers), operators that need values
(`nonzero`, `unique`), and cuDNN's other workspaces (convolutions, recurrent layers).
"""  # noqa: E501  (a table has its width)

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tritter_mem.allocator.rules import round_request
from tritter_mem.config.cards import GpuCard
from tritter_mem.simulation.cuda.scratch import (
    attention,
    elementwise,
    indexing,
    products,
    reductions,
    sorting,
)

Rule = Callable[..., Iterator[int]]
RULES: dict[str, Rule] = {
    **attention.RULES,
    **elementwise.RULES,
    **indexing.RULES,
    **products.RULES,
    **reductions.RULES,
    **sorting.RULES,
}


def scratch_bytes(
    card: GpuCard, operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[int]:
    """What an operator allocates inside on a card, in order.

    Args:
        card: where it runs.
        operator: such as `aten.sort.default`.
        args: its positional arguments.
        kwargs: its named arguments.

    Yields:
        Bytes that it takes, or as a negative number bytes that it gives back; what is not given
        back goes when it returns.
    """
    rule = RULES.get(operator)
    return iter(()) if rule is None else rule(card, *args, **kwargs)


def peak_bytes(sizes: Iterable[int]) -> int:
    """The most that is held at once, in whole blocks, of bytes that come (+) and go (-)."""
    held = peak = 0
    for size in sizes:
        held += round_request(size) if size > 0 else -round_request(-size)
        peak = max(peak, held)
    return peak
