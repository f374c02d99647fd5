"""Operations on shapes make what PyTorch's operators make: shapes, strides, views, and memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import pytest

from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.shape_tensors import (
    FLOAT,
    NotPlannedError,
    Operations,
    Tensor,
    _is_channels_last,
)

torch = pytest.importorskip("torch")

H100 = find_gpu("h100")
Shape = tuple[int, ...]
Values = Any
"""A tensor of PyTorch."""


def operations() -> Operations:
    return Operations(H100, H100.cublas_workspace_bytes)


class Laid(NamedTuple):
    """The same tensor twice."""

    ours: Tensor
    theirs: Values


def laid_out(ops: Operations, rng: random.Random, rank: int) -> Laid:
    """A tensor of some rank, its dimensions in any order, some of them broadcast or cut."""
    shape = tuple(rng.choice((1, 2, 3, 4, 6)) for _ in range(rank))
    ours = ops.new(shape, FLOAT)
    theirs = torch.empty(shape, device="meta")
    for _ in range(rng.randrange(3)):
        if rng.random() < 0.6:
            order = rng.sample(range(rank), rank)
            ours, theirs = ops.permuted(ours, order), theirs.permute(order)
        else:
            dim = rng.randrange(rank)
            if (size := theirs.shape[dim]) > 1:
                start = size // 2
                ours = ops.slice(ours, dim, size - start)
                theirs = theirs.narrow(dim, start, size - start)
            else:
                wide = (*theirs.shape[:dim], 3, *theirs.shape[dim + 1 :])
                ours, theirs = ops.expand(ours, wide), theirs.expand(wide)
    return Laid(ours, theirs)


def strides(shape: Shape, found: Shape) -> Shape:
    """Those that say where elements lie."""
    return tuple(stride for size, stride in zip(shape, found, strict=True) if size > 1)


def assert_same(ours: Tensor, theirs: Values) -> None:
    assert ours.shape == tuple(theirs.shape)
    assert strides(ours.shape, ours.strides) == strides(ours.shape, tuple(theirs.stride()))


def cut(rng: random.Random, count: int) -> Shape:
    """A shape of so many elements."""
    shape = []
    while count > 1:
        part = rng.choice([n for n in range(2, count + 1) if count % n == 0])
        shape.append(part)
        count //= part
    for _ in range(rng.randrange(3)):
        shape.insert(rng.randrange(len(shape) + 1), 1)
    return tuple(shape) or (1,)


@pytest.mark.parametrize("seed", range(40))
def test_views_and_copies_lie_as_in_pytorch(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    for _ in range(60):
        ops = operations()
        rank = rng.randrange(1, 5)
        x = laid_out(ops, rng, rank)
        assert_same(*x)
        assert x.ours.is_contiguous == x.theirs.is_contiguous()
        wanted = cut(rng, x.ours.elements)
        reshaped = ops.reshape(x.ours, wanted), x.theirs.reshape(wanted)
        assert_same(*reshaped)
        is_view = reshaped[1].untyped_storage()._cdata == x.theirs.untyped_storage()._cdata
        assert (reshaped[0].storage is x.ours.storage) == is_view, (x.theirs.stride(), wanted)
        dim = rng.randrange(rank)
        for ours, theirs in (
            (ops.clone(x.ours), x.theirs.contiguous() if rank else x.theirs),
            (ops.scaled(x.ours), x.theirs * 2),
            (ops.copy(x.ours, 2), x.theirs.to(torch.bfloat16)),
            (ops.selected(x.ours, dim), x.theirs.select(dim, 0)),
            (ops.sum(x.ours, [dim]), x.theirs.sum(dim, keepdim=True)),
            (ops.transpose(x.ours, 0, dim), x.theirs.transpose(0, dim)),
            *zip(
                ops.split(x.ours, dim, [1] * x.ours.shape[dim]),
                x.theirs.split(1, dim),
                strict=True,
            ),
        ):
            assert_same(ours, theirs)


@pytest.mark.parametrize("seed", range(20))
def test_channels_come_last_where_pytorch_says_so(seed: int) -> None:
    from torch._prims_common import suggest_memory_format

    rng = random.Random(seed)  # noqa: S311
    for _ in range(100):
        ops = operations()
        shape = tuple(rng.choice((1, 2, 3)) for _ in range(4))
        order = rng.choice(((0, 1, 2, 3), (0, 3, 1, 2), rng.sample(range(4), 4)))
        x = ops.permuted(ops.new(shape, FLOAT), order)
        if rng.random() < 0.3:
            x = ops.expand(ops.slice(x, 1, 1), (x.shape[0], 3, *x.shape[2:]))
        theirs = torch.empty_strided(x.shape, x.strides, device="meta")
        assert _is_channels_last(x) == (suggest_memory_format(theirs) == torch.channels_last)


class Case(NamedTuple):
    """An operation on weights, both ways.

    Attributes:
        ours: on shape tensors. `theirs`: on PyTorch's.
        shapes: of the weights.
    """

    ours: Callable[..., Tensor]
    theirs: Callable[..., Values]
    shapes: tuple[Shape, ...]


def _twice(y: Any, first: Callable[[Any], Any], both: Callable[[Any, Any], Any]) -> Any:
    """What is made of y, with y itself."""
    return both(first(y), y)


ROWS, WIDTH = 700, 48
X = (2, ROWS, WIDTH)
CASES = {
    "scaled": Case(lambda ops, x: ops.scaled(x), lambda x: x * 2, (X,)),
    "shifted": Case(lambda ops, x: ops.shifted(x), lambda x: x + 2, (X,)),
    "square": Case(lambda ops, x: ops.square(x), lambda x: x.pow(2), (X,)),
    "exp": Case(lambda ops, x: ops.pointwise(x, saves="output"), lambda x: x.exp(), (X,)),
    "silu": Case(lambda ops, x: ops.pointwise(x), torch.nn.functional.silu, (X,)),
    "rsqrt": Case(lambda ops, x: ops.rsqrt(x), lambda x: x.rsqrt(), (X,)),
    "sum of rows": Case(lambda ops, x: ops.sum(x, [-1]), lambda x: x.sum(-1, keepdim=True), (X,)),
    "mean": Case(lambda ops, x: ops.mean(x), lambda x: x.mean(-1, keepdim=True), (X,)),
    "deviation": Case(lambda ops, x: ops.deviation(x), lambda x: x.std(-1, keepdim=True), (X,)),
    "softmax": Case(lambda ops, x: ops.softmax(x), lambda x: x.softmax(-1), (X,)),
    "add": Case(
        lambda ops, x, y: ops.add(ops.scaled(x), ops.scaled(y)), lambda x, y: x * 2 + y * 2, (X, X)
    ),
    "add a row": Case(lambda ops, x, y: ops.add(x, y), lambda x, y: x + y, (X, (WIDTH,))),
    "mul": Case(lambda ops, x, y: ops.mul(x, y), lambda x, y: x * y, (X, X)),
    "mul by a row": Case(lambda ops, x, y: ops.mul(x, y), lambda x, y: x * y, (X, (WIDTH,))),
    "mul of a sum": Case(
        lambda ops, x, y: ops.mul(ops.add(x, y), x), lambda x, y: (x + y) * x, (X, X)
    ),
    "used twice": Case(
        lambda ops, x: _twice(ops.scaled(x), lambda y: ops.pointwise(y, saves="output"), ops.mul),
        lambda x: _twice(x * 2, torch.exp, torch.mul),
        (X,),
    ),
    "used beside a sum": Case(
        lambda ops, x: _twice(ops.scaled(x), ops.scaled, lambda z, y: ops.add(y, z)),
        lambda x: _twice(x * 2, lambda y: y * 2, lambda z, y: y + z),
        (X,),
    ),
    "used three times": Case(
        lambda ops, x: _twice(ops.scaled(x), lambda y: ops.mul(y, ops.square(y)), ops.mul),
        lambda x: _twice(x * 2, lambda y: y * y.pow(2), torch.mul),
        (X,),
    ),
    "subtracted": Case(lambda ops, x, y: ops.subtracted(x, y), lambda x, y: x - y, (X, X)),
    "divided": Case(lambda ops, x, y: ops.divided(x, y), lambda x, y: x / y, (X, (2, ROWS, 1))),
    "matmul": Case(
        lambda ops, x, y: ops.matmul(x, y), lambda x, y: x @ y, ((6, 40, 64), (6, 64, 56))
    ),
    "matmul of a transposed": Case(
        lambda ops, x, y: ops.matmul(x, ops.transpose(y, 1, 2)),
        lambda x, y: x @ y.transpose(1, 2),
        ((6, 40, 64), (6, 56, 64)),
    ),
    "linear": Case(
        lambda ops, x, w: ops.linear(x, w),
        torch.nn.functional.linear,
        (X, (80, WIDTH)),
    ),
    "linear with a bias": Case(
        lambda ops, x, w, b: ops.linear(x, w, b),
        torch.nn.functional.linear,
        (X, (80, WIDTH), (80,)),
    ),
    "cat": Case(lambda ops, x, y: ops.cat([x, y], -1), lambda x, y: torch.cat([x, y], -1), (X, X)),
    "split": Case(
        lambda ops, x: ops.mul(*ops.split(x, -1, [24, 24])),
        lambda x: torch.mul(*x.split([24, 24], -1)),
        (X,),
    ),
    "transposed and copied": Case(
        lambda ops, x: ops.clone(ops.transpose(x, 1, 2)),
        lambda x: x.transpose(1, 2).contiguous(),
        (X,),
    ),
    "expanded": Case(
        lambda ops, x: ops.scaled(ops.expand(x, (4, ROWS, WIDTH))),
        lambda x: x.expand(4, ROWS, WIDTH) * 2,
        ((1, ROWS, WIDTH),),
    ),
    "cut": Case(lambda ops, x: ops.scaled(ops.slice(x, 1, 300)), lambda x: x[:, -300:] * 2, (X,)),
    "selected": Case(lambda ops, x: ops.scaled(ops.selected(x, 1)), lambda x: x[:, 3] * 2, (X,)),
    "cumsum": Case(lambda ops, x: ops.cumsum(x), lambda x: x.cumsum(-1), (X,)),
    "clamped": Case(lambda ops, x: ops.clamped(x), lambda x: x.clamp(-1, 1), (X,)),
}


def of_ours(case: Case) -> list[int]:
    """Bytes that come (+) and go (-), from the operation to the gradients of its weights."""
    ops = operations()
    weights = [ops.weight(shape, FLOAT, trains=True) for shape in case.shapes]
    begins = len(ops.requests.events)
    ops.grad = True
    out = case.ours(ops, *weights)
    loss = ops.sum(ops.square(out), range(len(out.shape)))
    del out
    ops.backward(loss)
    sizes = ops.requests.sizes
    return [sizes[e] if e >= 0 else -sizes[~e] for e in ops.requests.events[begins:]]


def of_pytorch(case: Case) -> list[int]:
    from tritter_mem.simulation.cuda.dispatch import as_on_cuda
    from tritter_mem.simulation.cuda.libraries import Libraries
    from tritter_mem.simulation.recorder import Recorder

    weights = [torch.empty(s, device="meta", requires_grad=True) for s in case.shapes]
    libraries = Libraries(H100, in_backward=lambda: torch._C._current_graph_task_id() >= 0)
    with as_on_cuda(H100.compute_capability), Recorder("meta", libraries) as recorder:
        out = case.theirs(*weights)
        loss = out.pow(2).sum()
        del out
        loss.backward()
    bytes_of = {event.storage: event.bytes for event in recorder.log if event.kind == "alloc"}
    return [
        event.bytes if event.kind == "alloc" else -bytes_of[event.storage]
        for event in recorder.log if event.bytes or bytes_of[event.storage]
    ]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operation_takes_what_pytorch_s_takes_with_its_gradient(name: str) -> None:
    ours, theirs = of_ours(CASES[name]), of_pytorch(CASES[name])
    assert sorted(size for size in ours if size > 4) == sorted(size for size in theirs if size > 4)
    assert max(accumulate(ours)) == pytest.approx(max(accumulate(theirs)), abs=64)


def test_a_number_is_seen_in_any_shape_of_one_element() -> None:
    ops = operations()
    theirs = torch.empty((), device="meta").reshape(1, 1)
    assert ops.reshape(ops.new((), 4), (1, 1)).strides == theirs.stride()


def test_sizes_that_do_not_fit_are_not_planned() -> None:
    ops = operations()
    one, other = ops.new((3, 4), 2), ops.new((3, 5), 2)
    for what, said in (
        (lambda: ops.view(one, (3, 5)), r"cannot view \[3, 4\] as \[3, 5\]"),
        (lambda: ops.mul(one, other), "cannot broadcast"),
        (lambda: ops.matmul(one, other), "cannot multiply"),
    ):
        with pytest.raises(NotPlannedError, match=said):
            what()
