"""What a reduction on a card needs where several blocks of threads share an output.

Each block leaves a partial result in a buffer, and the last one that is done adds them up. The
buffer has a result for every thread of a block's row, so a sum over the rows of a [2048, 2048]
matrix, as of a linear layer's bias gradient, takes 32 MiB. After `Reduce.cuh`, `setReduceConfig`,
and `TensorIterator.cpp`, which orders and joins dimensions, in PyTorch 2.11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Protocol

_THREADS, _WARP = 512, 32
_VECTOR = 4
_WIDE = 128
_FEW_VALUES, _MANY_VALUES = 16, 256
_COUNTER_BYTES = 4
_INDEXED_BYTES = (1 << 31) - 1
_THREADS_A_MULTIPROCESSOR = {(8, 0): 2048, (9, 0): 2048, (10, 0): 2048, (10, 3): 2048}
_FEWER_THREADS, _TURING_THREADS = 1536, 1024


class Chip(Protocol):
    """What of a card decides what kernels need: a `GpuCard`."""

    @property
    def multiprocessors(self) -> int:
        """How many it has."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor."""

    @property
    def vendor(self) -> str:
        """Who makes it: `nvidia` or `amd`."""


class Dim(NamedTuple):
    """A dimension of a reduction: its size, and strides of input and output in elements.

    The output's stride is 0 where the dimension is reduced.
    """

    size: int
    stride: int
    out_stride: int


def threads_a_multiprocessor(capability: tuple[int, int]) -> int:
    """Threads that a multiprocessor holds: CUDA's table of technical specifications."""
    if capability < (8, 0):
        return _TURING_THREADS
    return _THREADS_A_MULTIPROCESSOR.get(capability, _FEWER_THREADS)


def dimensions(shape: Sequence[int], strides: Sequence[int], reduced: Sequence[int]) -> list[Dim]:
    """Dimensions as the kernel walks them: reduced ones first, by stride, neighbours joined."""
    kept = [1 if i in reduced else size for i, size in enumerate(shape)]
    dims = [
        Dim(size, strides[i], 0 if i in reduced else prod(kept[i + 1 :]))
        for i, size in enumerate(shape)
    ][::-1]
    return _joined(_ordered(dims))


def _ordered(dims: list[Dim]) -> list[Dim]:
    """Insertion sort, as the order is none in the strict sense: broadcast dimensions are equal."""
    dims = list(dims)
    for at in range(1, len(dims)):
        moving = at
        for before in range(at - 1, -1, -1):
            order = _compare(dims[before], dims[moving])
            if order > 0:
                dims[before], dims[moving] = dims[moving], dims[before]
                moving = before
            elif order < 0:
                break
    return dims


def _compare(a: Dim, b: Dim) -> int:
    if (a.out_stride == 0) != (b.out_stride == 0):
        return 1 if b.out_stride == 0 else -1
    for one, other in ((a.out_stride, b.out_stride), (a.stride, b.stride)):
        if one and other and one != other:
            return 1 if one > other else -1
        if one and other and a.size > b.size:
            return 1
    return 0


def _joined(dims: list[Dim]) -> list[Dim]:
    joined = dims[:1]
    for dim in dims[1:]:
        last = joined[-1]
        if last.size == 1:
            joined[-1] = Dim(dim.size, dim.stride, dim.out_stride)
        elif dim.size == 1 or (
            last.size * last.stride == dim.stride and last.size * last.out_stride == dim.out_stride
        ):
            joined[-1] = last._replace(size=last.size * dim.size)
        else:
            joined.append(dim)
    return joined


@dataclass(frozen=True, slots=True)
class Reduction:
    """How a kernel is launched.

    Attributes:
        reduced: dimensions as `dimensions` returns them, those that are reduced.
        kept: the others.
        partial_bytes: of a partial result.
        loads: elements that a thread loads at once.
    """

    reduced: list[Dim]
    kept: list[Dim]
    partial_bytes: int
    loads: int = _VECTOR

    def buffers(self, card: Chip) -> tuple[int, int]:
        """Bytes for partial results, and for counters; both 0 where no output is shared."""
        width, height = self._threads()
        values = -(-self._inputs // width) if self._along else self._inputs
        rows = self._outputs // self._vector
        rows = rows if self._along else -(-rows // width)
        if values < min(height * _FEW_VALUES, _MANY_VALUES):
            return 0, 0
        blocks = _blocks(card, width * height, rows, -(-values // height))
        if blocks == 1:
            return 0, 0
        row = 1 if self._along else width * self._vector
        return self.partial_bytes * self._outputs * blocks * row, _COUNTER_BYTES * rows

    @property
    def _inputs(self) -> int:
        return prod(dim.size for dim in self.reduced)

    @property
    def _outputs(self) -> int:
        return prod(dim.size for dim in self.kept)

    @property
    def _along(self) -> bool:
        """Whether neighbours in memory are added up."""
        if not self.kept or not self.reduced:
            return not self.kept
        return self.reduced[0].stride < self.kept[0].stride

    @property
    def _vector(self) -> int:
        """Outputs that a thread takes at once: by what sizes and strides divide."""
        if self._along or self.kept[0].stride != 1:
            return 1
        vector = _VECTOR
        others = (dim.stride for dim in (*self.reduced, *self.kept[1:]))
        for number in (self.kept[0].size, *others):
            while number % vector:
                vector //= 2
        return vector

    def _threads(self) -> tuple[int, int]:
        """Width and height of a block of threads."""
        if not self._along:
            vector = self._vector
            return _block(self._outputs // vector, self._inputs, _THREADS // vector)
        side_by_side = self.reduced[0].stride == 1 and len(self.reduced) == 1
        wide = side_by_side and self._inputs > _WIDE and self.loads >= _VECTOR
        return _block(self._inputs // (_VECTOR if wide else 1), self._outputs, _THREADS)


def _blocks(card: Chip, threads: int, rows: int, values: int) -> int:
    """Blocks that share an output."""
    capacity = threads_a_multiprocessor(card.compute_capability) // threads
    at_once = card.multiprocessors * capacity
    if values < _MANY_VALUES or rows > at_once:
        return 1
    enough = min(-(-at_once // rows), -(-values // _FEW_VALUES))
    return max(enough, -(-values // _MANY_VALUES))


def _block(width: int, height: int, threads: int) -> tuple[int, int]:
    """Width and height of a block of threads: powers of two."""
    widest, highest = (min(_power(n), threads) for n in (width, height))
    narrow = min(widest, _WARP)
    block_height = min(highest, threads // narrow)
    return min(widest, threads // block_height), block_height


def _power(number: int) -> int:
    """The largest power of two that is not above it; at least 1."""
    return 1 << max(number, 1).bit_length() - 1


class Summed(NamedTuple):
    """What is reduced.

    Attributes:
        shape: sizes of its dimensions.
        strides: in elements.
        dims: numbers of those that are reduced, from the first.
        element_bytes: of an element.
    """

    shape: Sequence[int]
    strides: Sequence[int]
    dims: Sequence[int]
    element_bytes: int


def shared_bytes(
    card: Chip, x: Summed, partial_bytes: int, loads: int = _VECTOR
) -> tuple[int, int]:
    """Bytes for partial results, and for counters, of a reduction; both 0 where nothing is shared.

    Args:
        card: where it runs.
        x: what is reduced.
        partial_bytes: of one partial result.
        loads: elements that a thread loads at once.
    """
    if prod(x.shape) < _MANY_VALUES:
        return 0, 0
    walked = _indexable(dimensions(x.shape, x.strides, x.dims), x.element_bytes)
    summed = [dim for dim in walked if not dim.out_stride]
    return Reduction(summed, walked[len(summed) :], partial_bytes, loads).buffers(card)


def _indexable(dims: list[Dim], element_bytes: int) -> list[Dim]:
    """The first part that 32 bits can index, halved along the longest way as PyTorch does."""
    dims = list(dims)
    while element_bytes * sum((d.size - 1) * d.stride for d in dims) >= _INDEXED_BYTES:
        longest = max(range(len(dims)), key=lambda i: (dims[i].size - 1) * dims[i].stride)
        dims[longest] = dims[longest]._replace(size=dims[longest].size // 2)
    return dims
