"""The chunked loss and its gradients against PyTorch's own, in float32 and wider."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tritter_model.ops.cross_entropy import IGNORED, chunked_cross_entropy
from tritter_model.ops.rows import quantise_rows
from tritter_model.ops.ternary_format import unpack
from tritter_model.ops.ternary_training import ternarise

SHAPES = [(1, 17, 2), (2, 40, 130), (17, 33, 70)]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
with_both_heads = pytest.mark.parametrize("ternary", [False, True], ids=["float", "ternary"])


def some(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a table that gives logits of about one, and targets; one is left out."""
    tokens, width, vocabulary = shape
    targets = torch.randint(0, vocabulary, (tokens,))
    targets[1:2] = IGNORED
    return torch.randn(tokens, width), torch.randn(vocabulary, width) / width**0.5, targets


def with_gradients(loss: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss * 3, leaves)


def chunked(data: tuple[Tensor, Tensor, Tensor], chunk: int, ternary: bool) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in data[:2]]
    loss = chunked_cross_entropy(leaves[0], leaves[1], data[2], chunk, ternary)
    return with_gradients(loss, leaves)


def reference(data: tuple[Tensor, Tensor, Tensor], ternary: bool) -> tuple[Tensor, ...]:
    """PyTorch's own in float64, of what a ternary head makes of its factors."""
    hidden, table, targets = data
    if ternary:
        rows, (packed, scale) = quantise_rows(hidden), ternarise(table)
        hidden = rows.codes.double() * rows.scale.double()[:, None]
        table = (unpack(packed, table.shape[1]).double() - 1) * scale.double()[:, None]
    leaves = [x.detach().double().requires_grad_() for x in (hidden, table)]
    return with_gradients(F.cross_entropy(leaves[0] @ leaves[1].T, targets), leaves)


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative to the norm of what is wanted."""
    return float((got.double() - wanted).norm() / wanted.norm().clamp(min=1e-6))


@in_every_shape
@with_both_heads
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_loss_and_gradients_are_those_of_pytorch(
    device: torch.device, kernels: None, shape: tuple[int, int, int], ternary: bool, chunk: int
) -> None:
    data = some(shape)
    for ours, theirs in zip(chunked(data, chunk, ternary), reference(data, ternary), strict=True):
        assert error(ours, theirs) < 1e-5


def test_a_vocabulary_may_be_wider_than_a_block(device: torch.device, kernels: None) -> None:
    data = some((3, 33, 9001))
    for ours, theirs in zip(chunked(data, 2, False), reference(data, False), strict=True):
        assert error(ours, theirs) < 1e-5


@with_both_heads
def test_bfloat16_is_as_near_as_its_logits_allow(
    device: torch.device, kernels: None, ternary: bool
) -> None:
    hidden, table, targets = some((17, 64, 90))
    data = (hidden.bfloat16(), table, targets)
    as_cast = (data[0], data[1] if ternary else data[1].bfloat16(), targets)
    for ours, theirs in zip(chunked(data, 5, ternary), reference(as_cast, ternary), strict=True):
        assert error(ours, theirs) < 2e-2


@with_both_heads
def test_large_logits_do_not_overflow(device: torch.device, kernels: None, ternary: bool) -> None:
    hidden, table, targets = some((3, 40, 130))
    loss, *gradients = chunked((hidden * 100, table * 100, targets), 2, ternary)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_without_a_target_that_counts_there_is_no_mean(device: torch.device, kernels: None) -> None:
    """As in PyTorch."""
    hidden, table, targets = some((3, 40, 130))
    assert chunked_cross_entropy(hidden, table, torch.full_like(targets, IGNORED), 2).isnan()


@pytest.mark.parametrize("wrong", [130, 131, 1 << 40, -1, -101])
def test_a_target_that_the_vocabulary_does_not_have_makes_the_loss_nan(
    device: torch.device, kernels: None, wrong: int
) -> None:
    """Nothing beyond the logits is read, and nobody waits for the targets on a GPU."""
    hidden, table, targets = some((3, 40, 130))
    targets[2] = wrong
    loss, *gradients = chunked((hidden, table, targets), 2, False)
    assert loss.isnan()
    assert all(gradient.isnan().any() for gradient in gradients)


def test_the_same_loss_comes_out_twice(device: torch.device, kernels: None) -> None:
    """Sums are always taken in the same order."""
    data = some((17, 33, 90))
    for first, second in zip(chunked(data, 5, False), chunked(data, 5, False), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.ones(4, 9)}, r"targets of int64 \[3\], expected int64 \[4\]"),
        ({1: torch.ones(7, 8)}, r"output projection of float32 \[7, 8\],.*\[any, 9\]"),
        ({2: torch.ones(3)}, r"targets of float32 \[3\], expected int64 \[3\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    device: torch.device, kernels: None, change: dict[int, Tensor], message: str
) -> None:
    arguments: list[Any] = [torch.ones(3, 9), torch.ones(7, 9), torch.zeros(3, dtype=torch.int64)]
    for place, other in change.items():
        arguments[place] = other
    with pytest.raises(ValueError, match=message):
        chunked_cross_entropy(*arguments, chunk=2)


def test_references_agree_with_the_kernels(
    device: torch.device, both: Callable[[Callable[[], Any]], tuple[Any, Any]]
) -> None:
    data = some((17, 33, 90))
    for ours, theirs in zip(*both(lambda: chunked(data, 5, True)), strict=True):
        assert error(ours, theirs.double()) < 1e-6
