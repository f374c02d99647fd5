"""Ternary products: the kernels' sums of integers are exact, so results are equal, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_model.ops import ternary
from tritter_model.ops.jit import capability
from tritter_model.ops.rows import QuantisedRows, quantise_rows
from tritter_model.ops.ternary import ternary_linear
from tritter_model.ops.ternary_format import pack
from tritter_model.ops.tuning import tuned

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]
in_both_formats = pytest.mark.parametrize("form", ["ternary-2bit", "ternary-1.6bit"])
TOKENS = [1, 2, 16, 17, 33, 65]
WIDTHS = [(17, 3), (20, 5), (64, 40), (129, 17), (256, 33), (340, 9), (1100, 5)]


def some_weights(outputs: int, inputs: int, form: str) -> tuple[Tensor, Tensor]:
    """Packed weights and the scale of each output."""
    codes = torch.randint(0, 3, (outputs, inputs), dtype=torch.uint8)
    return pack(codes, form), torch.rand(outputs) + 0.1


@in_both_formats
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
def test_products_equal_the_reference(
    device: torch.device, both: Both, tokens: int, widths: tuple[int, int], form: str
) -> None:
    inputs, outputs = widths
    rows = quantise_rows(torch.randn(tokens, inputs))
    weights = some_weights(outputs, inputs, form)
    assert torch.equal(*both(lambda: ternary_linear(rows, *weights, torch.bfloat16)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_other_types_equal_the_reference(
    device: torch.device, both: Both, tokens: int, dtype: torch.dtype
) -> None:
    rows, weights = quantise_rows(torch.randn(tokens, 64)), some_weights(5, 64, "ternary-2bit")
    assert torch.equal(*both(lambda: ternary_linear(rows, *weights, dtype)))


@in_both_formats
def test_many_tokens_equal_the_reference(device: torch.device, both: Both, form: str) -> None:
    rows, weights = quantise_rows(torch.randn(2047, 83)), some_weights(37, 83, form)
    assert torch.equal(*both(lambda: ternary_linear(rows, *weights, torch.bfloat16)))


@in_both_formats
@pytest.mark.parametrize("tokens", [3, 70])
def test_wider_tiles_equal_the_reference(
    device: torch.device, both: Both, monkeypatch: pytest.MonkeyPatch, tokens: int, form: str
) -> None:
    """The tiles that large matrices take."""
    monkeypatch.setattr(ternary, "ENOUGH_TILES", 1)
    rows, weights = quantise_rows(torch.randn(tokens, 340)), some_weights(130, 340, form)
    assert torch.equal(*both(lambda: ternary_linear(rows, *weights, torch.bfloat16)))


@in_both_formats
@pytest.mark.parametrize("outputs", [130, 300])
def test_tiles_of_256_outputs_equal_those_of_128(
    device: torch.device, kernels: None, monkeypatch: pytest.MonkeyPatch, outputs: int, form: str
) -> None:
    monkeypatch.setattr(ternary, "ENOUGH_TILES", 1)
    rows, weights = quantise_rows(torch.randn(70, 340)), some_weights(outputs, 340, form)
    launched = []

    def product(tile: int) -> Tensor:
        with tuned(many_rows_tile=tile):
            launched.append(ternary._many_rows_tile(70, outputs, 4)["OUTPUTS"])
            return ternary_linear(rows, *weights, torch.bfloat16)

    assert torch.equal(product(256), product(128))
    assert launched == [256 if capability() in (0, 90) else 128, 128]


@in_both_formats
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_the_largest_sums_are_exact(
    device: torch.device, kernels: None, tokens: int, form: str
) -> None:
    inputs = 4096
    rows = quantise_rows(torch.ones(tokens, inputs))
    packed = pack(torch.full((2, inputs), 2, dtype=torch.uint8), form)
    out = ternary_linear(rows, packed, torch.ones(2), torch.float32)
    assert torch.equal(out, torch.full_like(out, 127 * inputs) * rows.scale[:, None])


@in_both_formats
@pytest.mark.parametrize("inputs", [83, 1024])
def test_rows_and_weights_may_begin_anywhere(
    device: torch.device, both: Both, inputs: int, form: str
) -> None:
    """Slices begin at bytes that no word does."""
    rows = QuantisedRows(*(part[1:2] for part in quantise_rows(torch.randn(3, inputs))))
    packed, scale = some_weights(9, inputs, form)
    weights = packed[3:8], scale[3:8]
    assert torch.equal(*both(lambda: ternary_linear(rows, *weights, torch.float32)))


def odd_calls() -> list[tuple[Callable[[], Any], str]]:
    """Calls that must be refused, and what is said."""

    def call(tokens: int = 2, inputs: int = 40, **changes: Callable[[Tensor], Tensor]) -> Tensor:
        rows = quantise_rows(torch.ones(tokens, inputs))
        packed, scale = some_weights(6, 40, "ternary-2bit")
        packed, scale = (
            changes.get(name, lambda same: same)(tensor)
            for name, tensor in (("packed", packed), ("scale", scale))
        )
        return ternary_linear(rows, packed, scale, torch.bfloat16)

    return [
        (lambda: call(inputs=44), "got packed rows of 10 bytes for 44 inputs, expected 11.*or 9"),
        (lambda: call(packed=lambda p: p.int()), r"got packed weights of int32 \[6, 10\]"),
        (lambda: call(packed=lambda p: p.T.contiguous().T), "got packed weights with strides"),
        (lambda: call(scale=lambda s: s[:5]), r"scale of float32 \[5\], expected float32 \[6\]"),
        (lambda: call(scale=lambda s: s.half()), r"scale of float16 \[6\], expected float32 \[6\]"),
    ]


@pytest.mark.parametrize("number", range(5))
def test_what_a_kernel_does_not_take_is_refused(
    device: torch.device, kernels: None, number: int
) -> None:
    call, message = odd_calls()[number]
    with pytest.raises(ValueError, match=message):
        call()
