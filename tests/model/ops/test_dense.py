"""Dense layers of every storage, and their gradients."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tritter_model.ops import dense
from tritter_model.ops.embedding import embed
from tritter_model.ops.expand import int4_groups

SHAPES = [(1, 3, 2), (2, 128, 5), (16, 129, 40), (17, 301, 37)]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
a_block_at_a_time = pytest.mark.parametrize("block", [4096, 7])


@in_every_shape
def test_linear_and_its_gradients_are_those_of_pytorch(shape: tuple[int, int, int]) -> None:
    tokens, inputs, outputs = shape
    x = torch.randn(tokens, inputs, requires_grad=True)
    weight = torch.randn(outputs, inputs, requires_grad=True)
    out, grad = dense.trained_linear(x, weight), torch.randn(tokens, outputs)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    wanted = F.linear(*wide)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-4)
    got = torch.autograd.grad(out, (x, weight), grad)
    for ours, theirs in zip(got, torch.autograd.grad(wanted, wide, grad.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)


def test_master_weights_act_in_the_type_of_the_activations_and_their_cast_is_not_kept(
    saved: Any,
) -> None:
    x = torch.randn(17, 301, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(37, 301, requires_grad=True)
    with saved(besides=[x, weight]) as kept:
        out = dense.trained_linear(x, weight)
    assert kept.nbytes == 0
    assert torch.equal(out, F.linear(x, weight.bfloat16()))
    grad = torch.randn_like(out)
    grad_x, grad_weight = torch.autograd.grad(out, (x, weight), grad)
    assert torch.equal(grad_x, grad @ weight.bfloat16())
    torch.testing.assert_close(grad_weight, grad.float().T @ x.float(), rtol=1e-5, atol=1e-4)


def test_a_weight_that_has_the_type_already_is_not_copied() -> None:
    weight, x = torch.randn(3, 4), torch.randn(2, 4)
    assert dense.cast_weight(weight, x) is weight


def test_int8_weights_are_right_to_half_a_step() -> None:
    weight = torch.randn(37, 301) * torch.logspace(-3, 3, 37)[:, None]
    codes, scale = dense.quantise_int8(weight)
    assert ((codes * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()
    torch.testing.assert_close(scale, weight.abs().amax(1) / 127)


@in_every_shape
@a_block_at_a_time
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int8_products_are_those_of_the_expanded_weights(
    shape: tuple[int, int, int], block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "EXPANDED_ROWS", block)
    tokens, inputs, outputs = shape
    x = torch.randn(tokens, inputs).to(dtype)
    codes, scale = dense.quantise_int8(torch.randn(outputs, inputs))
    assert_product(dense.quantised_linear(x, codes, scale), x, (codes * scale[:, None]).to(dtype))


@in_every_shape
@a_block_at_a_time
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int4_products_are_those_of_the_expanded_weights(
    shape: tuple[int, int, int], block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "EXPANDED_ROWS", block)
    tokens, inputs, outputs = shape
    x = torch.randn(tokens, inputs).to(dtype)
    whole, half = torch.randint(-8, 8, (outputs, inputs)), -(-inputs // 2)
    groups = -(-inputs // 128)
    assert int4_groups(inputs) == groups
    scale = (torch.rand(outputs, groups) + 0.1).half()
    padded = F.pad(whole, (0, 2 * half - inputs)) + 8
    packed = (padded[:, :half] + 16 * padded[:, half:]).to(torch.uint8)
    by_input = scale[:, torch.arange(inputs) // 128].float()
    assert_product(dense.quantised_linear(x, packed, scale), x, (whole * by_input).to(dtype))


def assert_product(got: Tensor, x: Tensor, weight: Tensor) -> None:
    """x @ weightᵀ but for float32 sums and one rounding to the type of the result."""
    x, weight = x.double(), weight.double()
    wanted, terms = x @ weight.T, x.abs() @ weight.abs().T
    bound = torch.finfo(got.dtype).eps * wanted.abs() + x.shape[1] * 2**-24 * terms
    assert ((got - wanted).abs() <= bound).all()


def test_a_shared_table_gets_both_gradients_in_one_tensor(recording: Any) -> None:
    ids, table = torch.randint(0, 31, (17,)), torch.randn(31, 9, requires_grad=True)
    first, second = dense.shared(table)
    x = embed(ids, first, None, None, torch.empty(17, 9))
    out = dense.trained_linear(x, second)
    with recording() as events:
        out.backward(torch.ones_like(out))
    sized = [made for made in events.made if made.nbytes == 31 * 9 * 4 and "empty" in made.operator]
    assert len(sized) == 2  # one for each use, none for their sum
    leaf = table.detach().double().requires_grad_()
    F.linear(leaf[ids], leaf).sum().backward()
    assert table.grad is not None
    torch.testing.assert_close(table.grad.double(), leaf.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_logits_come_in_the_type_of_the_table(stored: torch.dtype) -> None:
    x, table = torch.randn(17, 33).bfloat16(), torch.randn(131, 33).to(stored)
    got = dense.project(x, table, None)
    assert got.dtype == stored
    assert_product(got, x.to(stored), table)


def test_logits_of_an_int8_table_come_in_the_type_of_the_activations() -> None:
    x, (codes, scale) = torch.randn(17, 33).bfloat16(), dense.quantise_int8(torch.randn(131, 33))
    got = dense.project(x, codes, scale)
    assert_product(got, x, (codes * scale[:, None]).bfloat16())
