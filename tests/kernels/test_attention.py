"""Attention over whole sequences and its gradients, against PyTorch's own in float32 and wider."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tritter_model.ops import attention as operators
from tritter_model.ops.attention import Mask, attention
from tritter_model.ops.attention_backward import Attended, attention_backward
from tritter_model.ops.flash import Tile

ROUNDING = {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 2e-6}
"""Largest relative error (in the norm) of each type's results; weights are rounded to it too."""

Shape = tuple[int, int, int, int, int]
# Sequences, tokens, query heads, key-value heads, width.
CASES: list[tuple[Shape, Mask, torch.dtype]] = [
    ((1, 1, 8, 8, 128), Mask(), torch.bfloat16),
    ((3, 2, 2, 1, 64), Mask(), torch.bfloat16),
    ((1, 2, 32, 32, 64), Mask(), torch.bfloat16),
    ((3, 17, 4, 2, 20), Mask(window=5, sinks=2), torch.float32),
    ((1, 129, 2, 1, 128), Mask(), torch.bfloat16),
    ((2, 129, 2, 2, 64), Mask(causal=False), torch.float16),
    ((1, 17, 2, 1, 136), Mask(causal=False), torch.bfloat16),
    ((1, 300, 2, 1, 64), Mask(window=40, sinks=3), torch.bfloat16),
    ((1, 17, 1, 1, 64), Mask(window=1, sinks=30), torch.bfloat16),
]


def some(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A fused projection [T, A + 2G, D], and a gradient of the output."""
    batch, tokens, heads, kv_heads, width = shape
    qkv = torch.randn(batch * tokens, heads + 2 * kv_heads, width).to(dtype)
    return qkv, torch.randn(batch * tokens, heads * width).to(dtype)


def split(qkv: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.split([shape[2], shape[3], shape[3]], 1)
    return q, k, v


def with_gradients(
    qkv: Tensor, grad: Tensor, shape: Shape, mask: Mask
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp, and the gradient of the projection."""
    q, k, v = split(qkv, shape)
    out, lse = attention(q, k, v, shape[0], mask)
    grads = torch.empty_like(qkv)
    attention_backward(grad, Attended(q, k, v, out, lse), shape[0], mask, split(grads, shape))
    return out, lse, grads


def pytorch(qkv: Tensor, grad: Tensor, shape: Shape, mask: Mask) -> tuple[Tensor, Tensor]:
    """Output and gradient of the projection by SDPA and autograd, in float32."""
    leaf = qkv.float().requires_grad_()
    place = torch.arange(shape[1])
    q, k, v = (x.unflatten(0, (shape[0], -1)).transpose(1, 2) for x in split(leaf, shape))
    out = F.scaled_dot_product_attention(q, k, v, mask.visible(place, place), enable_gqa=True)
    out = out.transpose(1, 2).reshape(grad.shape)
    return out.detach(), torch.autograd.grad(out, leaf, grad.float())[0]


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative to the norm of what is wanted; 1 where what is got is no number."""
    difference = (got.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-6)
    return float(difference.nan_to_num(1.0))


def cosine(got: Tensor, wanted: Tensor) -> float:
    return float(F.cosine_similarity(got.double().flatten(), wanted.double().flatten(), 0))


@pytest.mark.parametrize(("shape", "mask", "dtype"), CASES, ids=str)
def test_output_and_gradients_are_those_of_pytorch(
    device: torch.device, kernels: None, shape: Shape, mask: Mask, dtype: torch.dtype
) -> None:
    qkv, grad = some(shape, dtype)
    out, _, grads = with_gradients(qkv, grad, shape, mask)
    for got, wanted in zip((out, grads), pytorch(qkv, grad, shape, mask), strict=True):
        assert error(got, wanted) < ROUNDING[dtype]
        assert cosine(got, wanted) >= 0.999


def test_kernels_agree_with_the_references(device: torch.device, both: Any) -> None:
    shape, mask = (2, 33, 4, 2, 64), Mask(window=9, sinks=2)
    qkv, grad = some(shape, torch.bfloat16)
    ours, theirs = both(lambda: with_gradients(qkv, grad, shape, mask))
    for got, wanted in zip(ours, theirs, strict=True):
        assert error(got, wanted) < ROUNDING[torch.bfloat16]
    assert error(ours[1], theirs[1]) < 1e-6


@pytest.mark.parametrize("window", [31, 32, 33, 47, 48, 49])
def test_a_window_may_end_anywhere_in_a_block(
    device: torch.device, kernels: None, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Blocks that no row sees are left out, and those that all see take no mask."""
    monkeypatch.setattr(operators, "forward_tile", lambda q: Tile(32, 16, 4, 1))
    shape = (1, 97, 1, 1, 16)
    qkv, _ = some(shape, torch.float32)
    out, _ = attention(*split(qkv, shape), 1, Mask(window=window, sinks=1))
    wanted, _ = pytorch(qkv, torch.zeros_like(out), shape, Mask(window=window, sinks=1))
    assert error(out, wanted) < ROUNDING[torch.float32]


def test_the_same_gradients_come_out_twice(device: torch.device, kernels: None) -> None:
    """A group's heads are added in one order, without atomics."""
    shape = (1, 40, 4, 1, 16)
    qkv, grad = some(shape, torch.bfloat16)
    first, second = (with_gradients(qkv, grad, shape, Mask()) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_an_output_s_gradient_may_be_one_number_for_all(
    device: torch.device, kernels: None
) -> None:
    """A sum's gradient is seen through strides of zero."""
    shape = (1, 17, 2, 1, 64)
    qkv, grad = some(shape, torch.float32)
    one = torch.ones(()).expand(grad.shape)
    grads = with_gradients(qkv, one, shape, Mask())[2]
    assert error(grads, pytorch(qkv, one, shape, Mask())[1]) < ROUNDING[torch.float32]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
def test_large_scores_do_not_overflow(device: torch.device, kernels: None) -> None:
    shape = (1, 17, 2, 1, 64)
    qkv, grad = some(shape, torch.bfloat16)
    results = with_gradients(qkv * 100, grad, shape, Mask())
    assert all(torch.isfinite(result).all() for result in results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {}, "heads 300 wide, expected at most 256"),
        (lambda: {"q": torch.ones(6, 300, 4).mT}, "got queries with strides.*adjacent"),
        (
            lambda: {"q": torch.ones(6, 3, 300)},
            "got 3 query heads, 2 key-value heads and 6 tokens of 2",
        ),
        (lambda: {"batch": 4}, "6 tokens of 4 sequences, expected a multiple"),
        (
            lambda: {"v": torch.ones(6, 2, 300).half()},
            r"got values of float16.*expected float32",
        ),
    ],
)
def test_what_a_kernel_does_not_take_is_refused(
    device: torch.device, kernels: None, change: Callable[[], dict[str, Any]], message: str
) -> None:
    arguments: dict[str, Any] = {"q": torch.ones(6, 4, 300), "batch": 2}
    arguments |= {"k": torch.ones(6, 2, 300), "v": torch.ones(6, 2, 300)} | change()
    with pytest.raises(ValueError, match=message):
        attention(**arguments, mask=Mask())


def test_too_many_heads_for_a_grid_are_refused() -> None:
    """CUDA would refuse the launch without saying why."""
    q = torch.empty((40_000, 2, 16), device="meta")
    lse = torch.empty((40_000, 2), device="meta")
    with pytest.raises(ValueError, match=r"got 40000 sequences of 2 heads.*expected 65535"):
        operators._attention.launch(q, q, q, 40_000, True, 0, 0, q, lse)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [8, 32])
def test_a_layer_of_the_7b_model_is_as_near_as_pytorch_s_own(kernels: None, kv_heads: int) -> None:
    """Against SDPA in float32: no further from it than twice SDPA in bfloat16."""
    shape = (1, 2048, 32, kv_heads, 128)
    with torch.device("cuda"):
        qkv, grad = some(shape, torch.bfloat16)
        ours = with_gradients(qkv, grad, shape, Mask())
        wanted = pytorch(qkv, grad, shape, Mask())
        q, k, v = (x.transpose(0, 1)[None] for x in split(qkv, shape))
        theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    allowed = 2 * error(theirs[0].transpose(0, 1).flatten(1), wanted[0])
    assert error(ours[0], wanted[0]) <= allowed
    assert error(ours[2], wanted[1]) < ROUNDING[torch.bfloat16]
