"""The vision tower's norm."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tritter_model.ops.layer_norm import layer_norm

TYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (17, 768), (3, 4097)], ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_layer_norm_is_pytorch_s_in_float64(
    device: torch.device, kernels: None, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Rows far from zero too: their mean is taken off before anything is squared."""
    x = (torch.randn(shape) + torch.linspace(0, 30, shape[0])[:, None]).to(dtype)
    weight, bias = torch.randn(2, shape[1]).to(dtype)
    got = layer_norm(x, weight, bias, 1e-6)
    wanted = F.layer_norm(x.double(), shape[1:], weight.double(), bias.double(), 1e-6)
    bound = 2 * max(torch.finfo(dtype).eps, 1e-5)
    assert (got - wanted).abs().max() <= bound * (wanted.abs().max() + 1)


def test_the_reference_computes_the_same(
    device: torch.device, both: Callable[[Callable[[], Any]], tuple[Any, Any]]
) -> None:
    x, (weight, bias) = torch.randn(17, 768).bfloat16(), torch.randn(2, 768).bfloat16()
    ours, theirs = both(lambda: layer_norm(x, weight, bias, 1e-6))
    torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize(
    ("wide", "message"), [(8, r"the norm's weight of float32 \[7\]"), (14, "rows with strides")]
)
def test_what_it_does_not_take_is_refused(
    device: torch.device, kernels: None, wide: int, message: str
) -> None:
    x = torch.ones(3, wide)[:, : 8 if wide == 8 else 7]
    with pytest.raises(ValueError, match=message):
        layer_norm(x, torch.ones(7), torch.ones(7), 1e-6)
