"""Ternary weights: packing, exact products, rounding, and straight-through gradients."""

import pytest
import torch
from torch import Tensor

from tritter_model.ops import ternary
from tritter_model.ops.rows import quantise_rows
from tritter_model.ops.ternary_format import pack, packed_width, unpack
from tritter_model.ops.ternary_training import ternarise, trained_ternary_linear

FORMATS = ["ternary-2bit", "ternary-1.6bit"]
in_both_formats = pytest.mark.parametrize("weight_format", FORMATS)
SHAPES = [(1, 17, 1), (2, 129, 3), (16, 64, 40), (17, 83, 37), (5, 2047, 11)]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def some_codes(rows: int, width: int) -> Tensor:
    return torch.randint(0, 3, (rows, width), dtype=torch.uint8)


@in_both_formats
@pytest.mark.parametrize("width", [17, 18, 19, 20, 21, 63, 64, 65, 319, 320, 321, 4096])
def test_unpacking_gives_what_was_packed(weight_format: str, width: int) -> None:
    codes = some_codes(3, width)
    packed = pack(codes, weight_format)
    assert packed.shape == (3, packed_width(width, weight_format))
    assert torch.equal(unpack(packed, width), codes)


@in_both_formats
def test_every_combination_of_a_byte_survives(weight_format: str) -> None:
    digits = 4 if weight_format == "ternary-2bit" else 5
    width = 20  # at least 17, so that the packed width tells the format
    combinations = torch.cartesian_prod(*[torch.arange(3, dtype=torch.uint8)] * digits)
    codes = combinations.repeat_interleave(width // digits, 1)
    packed = pack(codes, weight_format)
    assert torch.equal(unpack(packed, width), codes)
    assert len(packed[:, 0].unique()) == 3**digits


def test_the_digits_of_a_byte_follow_the_published_formula() -> None:
    """Stored ceil(256 v / 243); digit n is (((b 3^n) & 255) 3) >> 8; for all 243 values v."""
    for value in range(243):
        byte = -(-256 * value // 243)
        digits = [(((byte * 3**n) & 255) * 3) >> 8 for n in range(5)]
        assert sum(d * 3 ** (4 - n) for n, d in enumerate(digits)) == value
        codes = torch.tensor([digits], dtype=torch.uint8).repeat_interleave(4, 1)
        assert pack(codes, "ternary-1.6bit").unique().tolist() == [byte]


@pytest.mark.parametrize("weight_format", FORMATS)
def test_padding_is_the_weight_zero(weight_format: str) -> None:
    packed = pack(some_codes(3, 81), weight_format)
    whole = packed.shape[1] * (4 if weight_format == "ternary-2bit" else 5)
    assert (unpack(packed, whole)[:, 81:] == 1).all()


def test_widths_at_which_the_formats_cannot_be_told_apart_are_refused() -> None:
    for width in range(1, 320):
        if packed_width(width, "ternary-2bit") != -(-width // 5):
            assert packed_width(width, "ternary-1.6bit") == -(-width // 5)
        else:
            with pytest.raises(ValueError, match=f"got {width} inputs.*ternary-2bit"):
                packed_width(width, "ternary-1.6bit")


def test_long_rows_of_1_6_bits_are_whole_loads_of_16_bytes() -> None:
    """And shorter than those of 2 bits, by which they are told apart."""
    for width in range(320, 3000):
        packed = packed_width(width, "ternary-1.6bit")
        assert packed % 16 == 0
        assert 0 <= packed - width / 5 < 16
        assert packed < packed_width(width, "ternary-2bit")


@in_both_formats
@in_every_shape
def test_products_are_the_integer_products(weight_format: str, shape: tuple[int, int, int]) -> None:
    """Exact sums: equal to an int64 product, then scaled once and rounded once."""
    tokens, inputs, outputs = shape
    rows, codes = quantise_rows(torch.randn(tokens, inputs)), some_codes(outputs, inputs)
    scale = torch.rand(outputs) + 0.1
    out = ternary.ternary_linear(rows, pack(codes, weight_format), scale, torch.float32)
    sums = rows.codes.long() @ (codes.long() - 1).T
    assert torch.equal(out, sums.float() * (rows.scale[:, None] * scale))


def test_the_largest_sum_is_exact() -> None:
    inputs = 131072
    rows = quantise_rows(torch.ones(1, inputs))
    packed = pack(torch.full((1, inputs), 2, dtype=torch.uint8), "ternary-2bit")
    out = ternary.ternary_linear(rows, packed, torch.ones(1), torch.float32)
    assert torch.equal(out[0], torch.tensor(127 * inputs) * rows.scale)


def test_weights_unpacked_a_block_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, packed = quantise_rows(torch.randn(3, 40)), pack(some_codes(37, 40), "ternary-2bit")
    whole = ternary.ternary_linear(rows, packed, torch.ones(37), torch.float32)
    monkeypatch.setattr(ternary, "_rows_at_once", lambda _: 5)
    assert torch.equal(ternary.ternary_linear(rows, packed, torch.ones(37), torch.float32), whole)


def test_weights_round_by_the_mean_magnitude_of_their_output() -> None:
    weight = torch.randn(7, 83) * torch.logspace(-2, 2, 7)[:, None]
    packed, scale = ternarise(weight)
    torch.testing.assert_close(scale.double(), weight.double().abs().mean(1), rtol=1e-6, atol=0)
    wanted = (weight / scale[:, None]).round().clamp(-1, 1)
    assert torch.equal(unpack(packed, 83).float() - 1, wanted)


def test_an_output_whose_weights_are_zero_stays_zero() -> None:
    packed, scale = ternarise(torch.zeros(2, 20))
    assert (unpack(packed, 20) == 1).all()
    assert torch.isfinite(scale).all()


def dequantised(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What the product really multiplies, as float64 leaves."""
    packed, scale = ternarise(weight)
    ternary_weight = (unpack(packed, weight.shape[1]).double() - 1) * scale.double()[:, None]
    rows = quantise_rows(x)
    wide = rows.codes.double() * rows.scale.double()[:, None]
    return wide.requires_grad_(), ternary_weight.requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_pass_straight_through_both_roundings(shape: tuple[int, int, int]) -> None:
    """They are those of the product of the dequantised activations and weights."""
    tokens, inputs, outputs = shape
    x = torch.randn(tokens, inputs, requires_grad=True)
    weight = torch.randn(outputs, inputs, requires_grad=True)
    grad = torch.randn(tokens, outputs)
    out = trained_ternary_linear(x, weight)
    got = torch.autograd.grad(out, (x, weight), grad)
    leaves = dequantised(x.detach(), weight.detach())
    wanted = leaves[0] @ leaves[1].T
    grads = torch.autograd.grad(wanted, leaves, grad.double())
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(got, grads, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_but_the_input_and_the_parameter_is_kept(dtype: torch.dtype, saved: type) -> None:
    x = torch.randn(3, 400, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(300, 400, dtype=dtype, requires_grad=True)
    with saved(besides=[x, weight]) as kept:
        out = trained_ternary_linear(x, weight)
    assert kept.nbytes == 0
    assert out.dtype == x.dtype
    out.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == dtype
