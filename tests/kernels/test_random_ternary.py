"""Random ternary weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_model.ops.random_ternary import _without_threes, fill_packed


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 1000)], ids=str)
@pytest.mark.parametrize("two_bit", [True, False])
def test_a_seed_gives_the_weights_of_the_reference(
    device: torch.device,
    both: Callable[[Callable[[], Any]], tuple[Any, Any]],
    seed: int,
    shape: tuple[int, int],
    two_bit: bool,
) -> None:
    def filled() -> Tensor:
        packed = torch.empty(shape, dtype=torch.uint8)
        fill_packed(packed, torch.Generator(device).manual_seed(seed), two_bit)
        return packed

    ours, theirs = both(filled)
    assert torch.equal(ours, theirs)


def test_every_code_of_three_becomes_zero_and_no_other_changes(
    device: torch.device, kernels: None
) -> None:
    packed = torch.arange(256).to(torch.uint8).view(4, 64)
    codes = torch.stack([(packed >> (2 * i)) & 3 for i in range(4)])
    _without_threes(packed)
    after = torch.stack([(packed >> (2 * i)) & 3 for i in range(4)])
    assert torch.equal(after, torch.where(codes == 3, 1, codes))


def test_rows_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="got packed weights with strides"):
        fill_packed(torch.empty(4, 6, dtype=torch.uint8).T, torch.Generator(), True)
