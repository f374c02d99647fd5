"""The likeliest token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_model.ops.argmax import argmax

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("vocabulary", [1, 131, 4096, 10_001])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_largest_of_each_row_is_that_of_pytorch(
    device: torch.device, both: Both, vocabulary: int, dtype: torch.dtype
) -> None:
    """In bfloat16 many are equal: the first of them."""
    logits = torch.randn(5, 2 * vocabulary).to(dtype)[:, :vocabulary]
    ours, theirs = both(lambda: argmax(logits))
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, logits.argmax(-1, keepdim=True))


@pytest.mark.parametrize(
    ("row", "wanted"),
    [([2, 3, 3], 1), ([-INF, -INF], 0), ([1, INF, INF], 1), ([1, NAN, 5, NAN], 1), ([-INF, 0], 1)],
)
def test_equals_infinities_and_nan(
    device: torch.device, both: Both, row: list[float], wanted: int
) -> None:
    for chosen in both(lambda: argmax(torch.tensor([row], dtype=torch.float32))):
        assert chosen.tolist() == [[wanted]]


@pytest.mark.parametrize("logits", [torch.ones(2, 3).int(), torch.ones(3)])
def test_what_it_does_not_take_is_refused(logits: Tensor) -> None:
    with pytest.raises(ValueError, match=r"got logits of .* \[any, any\]"):
        argmax(logits)
