"""Kernels of RoPE and QK-norm: rotation, its gradients, and angles far from the start."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.places import at
from tritter_model.ops import rotary, rotary_backward
from tritter_model.ops.angles import rotary_angles
from tritter_model.ops.registry import use_kernels
from tritter_model.ops.rotary import Heads, rotate_, rotate_into
from tritter_model.ops.rotary_backward import rotate_backward

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]
THETA, EPS = 500_000.0, 1e-5
SHAPES = [(1, 1, 1, 1, 2), (3, 1, 4, 1, 64), (1, 2, 12, 8, 128), (2, 2, 1, 32, 20)]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
with_and_without_norms = pytest.mark.parametrize("normed", [True, False])
OTHER_TYPES = [torch.float16, torch.float32]


def some(
    shape: tuple[int, ...], normed: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Heads]:
    batch, tokens, heads, kv_heads, width = shape
    qkv = torch.randn(batch * tokens, heads + 2 * kv_heads, width).to(dtype)
    norms = torch.randn(2, width) if normed else None
    return qkv, norms, Heads(batch, heads, kv_heads, THETA, EPS)


def rotated(
    qkv: Tensor, norms: Tensor | None, heads: Heads, position: Tensor | None,
    angles: Tensor | None = None,
) -> Tensor:  # fmt: skip
    out = torch.empty_like(qkv[:, : heads.rotated])
    rotate_into(qkv, norms, heads, position, out, angles)
    return out


def assert_near(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Right to a rounding of the largest number: the two that turn may take each other away."""
    bound = max(torch.finfo(dtype).eps, 2e-6)
    assert got.isfinite().all()
    assert (got - wanted).abs().max() <= bound * (wanted.abs().max() + 1)


@in_every_shape
@with_and_without_norms
def test_rotation_is_that_of_the_reference(
    device: torch.device, both: Both, shape: tuple[int, ...], normed: bool
) -> None:
    case = some(shape, normed, torch.bfloat16)
    assert_near(*both(lambda: rotated(*case, at(131_054))), torch.bfloat16)


@pytest.mark.parametrize("dtype", OTHER_TYPES, ids=str)
@pytest.mark.parametrize("position", [None, 4095])
def test_other_types_are_rotated_alike(
    device: torch.device, both: Both, dtype: torch.dtype, position: int | None
) -> None:
    case = some((1, 2, 1, 1, 20), True, dtype)
    place = None if position is None else at(position)
    assert_near(*both(lambda: rotated(*case, place)), dtype)


@pytest.mark.parametrize("width", [2, 20, 128])
def test_angles_are_those_of_the_reference(device: torch.device, both: Both, width: int) -> None:
    """Within 2e-7 of the exact ones each."""
    ours, wanted = both(lambda: rotary_angles(at(131_055), 17, width, THETA))
    assert (ours - wanted).abs().max() <= 4e-7


@in_every_shape
@with_and_without_norms
def test_angles_at_hand_rotate_to_the_same_bits(
    device: torch.device, kernels: None, shape: tuple[int, ...], normed: bool
) -> None:
    case = some(shape, normed, torch.bfloat16)
    angles = rotary_angles(at(131_054), shape[1], shape[4], THETA)
    wanted = rotated(*case, at(131_054))
    assert torch.equal(rotated(*case, at(131_054), angles), wanted)
    assert not torch.equal(rotated(*case, at(131_054), angles * 0.9), wanted)


def test_the_reference_takes_angles_at_hand_too() -> None:
    case = some((3, 5, 4, 1, 64), True, torch.float32)
    angles = rotary_angles(at(77), 5, 64, THETA)
    assert torch.equal(rotated(*case, at(77), angles), rotated(*case, at(77)))


def test_angles_of_other_tokens_are_refused() -> None:
    case = some((1, 2, 1, 1, 20), True, torch.float32)
    with pytest.raises(ValueError, match="got the angles"):
        rotated(*case, at(0), rotary_angles(at(0), 3, 20, THETA))


@with_and_without_norms
def test_rotating_in_place_leaves_the_values_alone(
    device: torch.device, kernels: None, normed: bool
) -> None:
    qkv, norms, heads = some((2, 2, 9, 1, 20), normed, torch.bfloat16)
    wanted = torch.cat((rotated(qkv, norms, heads, at(7)), qkv[:, heads.rotated :]), 1)
    assert rotate_(qkv, norms, heads, at(7)) is qkv
    assert torch.equal(qkv, wanted)


def test_more_tokens_than_programs_are_all_rotated(
    device: torch.device, both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program then takes all heads of some tokens. The projection is a part of a wider one."""
    monkeypatch.setattr(rotary, "MANY", 3)
    qkv, norms, heads = some((2, 4, 9, 1, 4), True, torch.float32)
    wider = torch.cat((qkv, qkv), 2)[..., :4]
    ours, theirs = both(lambda: rotated(wider, norms, heads, at(5)))
    assert_near(ours, theirs, torch.float32)


@pytest.mark.parametrize("last", [0, 4095, 131_071, 1_048_575])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_angles_are_exact_to_float32_at_every_position(
    device: torch.device, both: Both, last: int, theta: float
) -> None:
    """Ones and zeros turn into cosine and sine, here of the few tokens up to the last one."""
    tokens, half = min(4, last + 1), 64
    start = last + 1 - tokens
    qkv = torch.cat((torch.ones(tokens, 3, half), torch.zeros(tokens, 3, half)), 2)
    positions = torch.arange(start, last + 1, dtype=torch.float64)
    exponents = -torch.arange(half, dtype=torch.float64) / half
    angles = torch.outer(positions, torch.tensor(theta, dtype=torch.float64) ** exponents)
    wanted = torch.cat((angles.cos(), angles.sin()), 1)
    for got in both(lambda: rotated(qkv, None, Heads(1, 1, 1, theta, EPS), at(start))):
        assert (got[:, 0] - wanted).abs().max() <= 2e-7


@in_every_shape
@with_and_without_norms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_gradients_are_those_of_the_reference(
    device: torch.device, both: Both, shape: tuple[int, ...], normed: bool, dtype: torch.dtype
) -> None:
    qkv, norms, heads = some(shape, normed, dtype)
    grad = torch.randn_like(qkv[:, : heads.rotated])

    def compute() -> list[Tensor]:
        grads = torch.empty_like(grad), torch.empty(2, qkv.shape[2])
        rotate_backward(grad, qkv, norms, heads, grads)
        return list(grads if normed else grads[:1])

    ours, theirs = both(compute)
    assert_near(ours[0], theirs[0], dtype)
    if normed:
        assert (ours[1] - theirs[1]).norm() <= 1e-5 * theirs[1].norm() + 1e-6


def test_gradients_of_the_norms_are_the_same_bits_each_time(
    device: torch.device, kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more tokens than there are parts that they are summed in."""
    monkeypatch.setattr(rotary_backward, "NORM_SUMS", 17)
    qkv, norms, heads = some((1, 37, 1, 1, 20), True, torch.float32)
    grad, found = torch.randn_like(qkv[:, : heads.rotated]), []
    for kernel in (True, True, False):
        use_kernels(kernel)
        found.append((torch.empty_like(grad), torch.empty_like(norms)))
        rotate_backward(grad, qkv, norms, heads, found[-1])
    one, again, reference = (norm_grad for _, norm_grad in found)
    assert torch.equal(one, again)
    assert (one - reference).norm() <= 1e-5 * reference.norm()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rotated(torch.ones(4, 3, 6).int(), None, Heads(1, 1, 1, THETA, EPS), None),
         r"got the projection of int32 \[4, 3, 6\], expected .*\[any, 3, any\]"),
        (lambda: rotated(torch.ones(4, 4, 6), None, Heads(1, 1, 1, THETA, EPS), None),
         r"got the projection of float32 \[4, 4, 6\]"),
        (lambda: rotated(torch.ones(4, 3, 7), None, Heads(1, 1, 1, THETA, EPS), None),
         r"got a projection of \[4, 3, 7\].*heads of an even width"),
        (lambda: rotated(torch.ones(4, 3, 6), None, Heads(3, 1, 1, THETA, EPS), None),
         "for 3 sequences, expected as many tokens of each"),
        (lambda: rotated(torch.ones(4, 3, 6), torch.ones(6), Heads(1, 1, 1, THETA, EPS), None),
         r"got the norms' weights of float32 \[6\], expected .*\[2, 6\]"),
        (lambda: rotated(torch.ones(4, 3, 6), None, Heads(1, 1, 1, THETA, EPS), torch.ones(1)),
         r"got the position of float32 \[1\], expected int32 \[1\]"),
        (lambda: rotated(torch.ones(4, 6, 3).mT, None, Heads(1, 1, 1, THETA, EPS), None),
         "got the projection with strides.*call contiguous"),
    ],
)  # fmt: skip
def test_what_a_kernel_does_not_take_is_refused(
    device: torch.device, kernels: None, call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
