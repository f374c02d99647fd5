"""Rows of activations in int8: codes, scales, totals."""

import pytest
import torch
from torch import Tensor

from tritter_model.ops.rows import quantise_rows

SHAPES = [(1, 1), (2, 7), (16, 64), (17, 129), (2047, 33)]
TYPES = [torch.bfloat16, torch.float16, torch.float32]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
in_every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


def some_rows(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Rows of very different sizes, the first of them all zeros."""
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None]
    x[0] = 0 if shape[0] > 1 else 1
    return x.to(dtype)


@in_every_shape
@in_every_type
def test_codes_times_scale_are_the_row_to_half_a_step(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x = some_rows(shape, dtype)
    rows = quantise_rows(x)
    largest = x.double().abs().amax(1)
    torch.testing.assert_close(rows.scale.double(), largest.clamp(min=1e-5) / 127)
    error = (rows.codes * rows.scale[:, None] - x.float()).abs()
    assert (error <= rows.scale[:, None] * 0.5001).all()
    assert rows.codes.abs().max() <= 127
    if x.any():
        assert (rows.codes.abs().amax(1)[largest > 1e-5] == 127).all()


@in_every_shape
def test_totals_are_the_sums_of_the_codes(shape: tuple[int, int]) -> None:
    rows = quantise_rows(some_rows(shape, torch.bfloat16))
    assert rows.total.dtype == torch.int32
    assert torch.equal(rows.total.long(), rows.codes.long().sum(1))


def test_the_total_of_a_wide_row_of_equal_codes_does_not_overflow() -> None:
    rows = quantise_rows(torch.ones(1, 11008))
    assert rows.total.item() == 127 * 11008
