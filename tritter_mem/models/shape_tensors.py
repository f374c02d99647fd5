"""Tensors without numbers: their storages come and go as PyTorch's would.

A kind of module says what it runs with the operations here, in the order in which transformers
runs them. Each operation makes the storages that PyTorch makes for it on a card, keeps what
autograd keeps for the backward pass, and lets go what nothing holds any longer: a storage ends with
its last reference, as a tensor's does. So one description of a kind gives its memory in prefill, in
decode, in training, and with checkpointing, as requests that an allocator can be asked for.

Types are known by the bytes of an element: 8 for int64, 4 for float32, 2 for bfloat16 and float16,
1 for booleans. Nothing here needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count, pairwise
from math import prod
from sys import getrefcount
from typing import TypeAlias
from weakref import ref

from tritter_mem import torch_release
from tritter_mem.models.cuda_attention import (
    AttentionSizes,
    cudnn_backward_bytes,
    cudnn_forward_bytes,
    cudnn_suits,
    efficient_backward_bytes,
    efficient_forward_bytes,
    flash_backward_bytes,
    flash_forward_bytes,
    prefers_cudnn,
)
from tritter_mem.models.cuda_indexing import (
    embedding_backward_bytes,
    index_put_bytes,
    sort_bytes,
    topk_bytes,
)
from tritter_mem.models.cuda_reductions import Chip, Summed, shared_bytes

BOOL, HALF, FLOAT, LONG = 1, 2, 4, 8
QUANTISED = 1
"""Bytes of an element of a float8 weight; what other quantised weights take is not by element."""
Shape: TypeAlias = tuple[int, ...]


class NotPlannedError(Exception):
    """What a run does has no formulas here; the message says what."""


class Requests:
    """What a run asks of an allocator, in order.

    Attributes:
        sizes: bytes of each storage.
        components: what each is for, one of `results.COMPONENTS`; it may become known later.
        events: the number of a storage that came, or the complement (~) of one that went.
        places: from which event on what runs, in words.
        emptied: how many events there were where the allocator's cache is given back to the driver.
    """

    __slots__ = ("components", "emptied", "events", "places", "sizes")

    def __init__(self) -> None:
        self.emptied: list[int] = []
        self.sizes: list[int] = []
        self.components: list[str] = []
        self.events: list[int] = []
        self.places: list[tuple[int, str]] = []

    def enter(self, place: str) -> None:
        """From here on something else runs."""
        self.places.append((len(self.events), place))

    def empty_cache(self) -> None:
        """The allocator's cache is given back to the driver now."""
        self.emptied.append(len(self.events))

    def came(self, nbytes: int, component: str) -> int:
        """A storage came; returns its number."""
        number = len(self.sizes)
        self.sizes.append(nbytes)
        self.components.append(component)
        self.events.append(number)
        return number

    def went(self, number: int) -> None:
        """A storage went."""
        self.events.append(~number)

    def passing(self, sizes: Iterable[int], component: str = "workspace") -> None:
        """What comes (+) and goes (-) inside of an operator; what is left goes at its end."""
        held: list[int] = []
        for size in sizes:
            if size > 0:
                held.append(self.came(size, component))
            elif size < 0:
                at = max(i for i, number in enumerate(held) if self.sizes[number] == -size)
                self.went(held.pop(at))
        for number in held:
            self.went(number)


class Storage:
    """Bytes that are there until nothing holds them."""

    __slots__ = ("_requests", "number")

    def __init__(self, requests: Requests, nbytes: int, component: str) -> None:
        self._requests: Requests | None = requests
        self.number = requests.came(nbytes, component)

    @classmethod
    def known(cls, requests: Requests, number: int) -> Storage:
        """A storage that came already."""
        storage = cls.__new__(cls)
        storage._requests, storage.number = requests, number
        return storage

    def has_gone(self) -> None:
        """Its end is among the events already."""
        self._requests = None

    def __del__(self) -> None:
        if self._requests is not None:
            self._requests.events.append(~self.number)


class Tensor:
    """A shape over a storage.

    Attributes:
        shape: sizes of its dimensions.
        strides: in elements.
        size: bytes of an element.
        storage: None where it has no elements, or needs no memory of the card.
        node: what made it, where its gradient is wanted; `slot`: which of its results it is.
        is_view: whether it is a view of another tensor.
    """

    __slots__ = ("is_view", "node", "shape", "size", "slot", "storage", "strides")

    def __init__(
        self,
        shape: Shape,
        strides: Shape,
        size: int,
        storage: Storage | None,
        is_view: bool = False,
    ) -> None:
        self.shape, self.strides, self.size, self.storage = shape, strides, size, storage
        self.node: Node | Leaf | None = None
        self.slot = 0
        self.is_view = is_view

    @property
    def elements(self) -> int:
        """How many it has."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of all its elements."""
        return prod(self.shape) * self.size

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie in order, without gaps."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1:
                if stride != expected:
                    return False
                expected *= size
        return True

    @property
    def is_dense(self) -> bool:
        """Whether its elements lie side by side, each once, in whatever order."""
        expected = 1
        for stride, size in sorted(zip(self.strides, self.shape, strict=True)):
            if size != 1:
                if stride != expected:
                    return False
                expected *= size
        return True

    def detached(self) -> Tensor:
        """The same memory without what made it."""
        return Tensor(self.shape, self.strides, self.size, self.storage, self.is_view)


class Parameter(Tensor):
    """A weight.

    Attributes:
        grad: its gradient.
        cast: itself in the type of autocast, while that keeps it.
        product: how rows are multiplied with it, where its numbers are quantised; else None.
    """

    __slots__ = ("cast", "grad", "product")

    def __init__(self, shape: Shape, size: int, storage: Storage | None, trains: bool) -> None:
        super().__init__(shape, contiguous(shape), size, storage)
        self.grad: Tensor | None = None
        self.cast: Tensor | None = None
        self.product: Product | None = None
        if trains:
            self.node = Leaf(self)


Product: TypeAlias = "Callable[[Operations, Tensor, Parameter, Tensor | None], Tensor]"
"""Of rows [..., K], a weight [N, K] and a bias [N]: [..., N]."""
Grads: TypeAlias = "list[Tensor | None]"
Saved: TypeAlias = "list[Tensor]"
Rule: TypeAlias = Callable[[Saved, Grads], "Sequence[Tensor | None]"]
Edge: TypeAlias = "tuple[Node | Leaf, int, Shape, int] | None"


class Leaf:
    """Where the gradient of a weight arrives."""

    __slots__ = ("_parameter",)

    def __init__(self, parameter: Parameter) -> None:
        self._parameter = parameter

    @property
    def parameter(self) -> Parameter:
        """The weight."""
        return self._parameter


class Frame:
    """A checkpointed part: what it would have saved, and how to run it again.

    Attributes:
        run: runs it; holds its inputs. `autocast`: as it was run.
        owners: the operation of each tensor that it would have saved, while that is there.
        again: those tensors by number, once it has run again, which `has_run` says: of operations
            that are still there, as only their gradients are wanted.
        seen: how many there were so far when it runs again.
    """

    __slots__ = ("again", "autocast", "has_run", "owners", "run", "seen")

    def __init__(self, run: Callable[[], object], autocast: int) -> None:
        self.run, self.autocast = run, autocast
        self.owners: list[ref[Node]] = []
        self.seen = 0
        self.again: dict[int, Tensor] = {}
        self.has_run = False


class Node:
    """An operation whose gradient is wanted.

    Attributes:
        rule: takes what was saved and the gradients of the results; gives those of the inputs.
        edges: for each input what made it, and its shape and element size; None: not wanted.
        number: counts up.
        results: how many results the operation has.
        saved: what it needs; of a checkpointed one, empty.
        frame: the checkpointed part that it belongs to; `first`, `wants`: of its saved tensors.
    """

    __slots__ = (
        "__weakref__", "edges", "first", "frame", "number", "results", "rule", "saved", "wants",
    )  # fmt: skip

    def __init__(self, rule: Rule, edges: list[Edge], number: int, results: int) -> None:
        self.rule, self.edges, self.number, self.results = rule, edges, number, results
        self.saved: Saved = []
        self.frame: Frame | None = None
        self.first = self.wants = 0


class _AllSavedError(Exception):
    """A checkpointed part has run again as far as its backward pass needs."""


def contiguous(shape: Shape) -> Shape:
    """Strides of elements that lie in order."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _is_channels_last(x: Tensor) -> bool:
    """Whether the second of four dimensions is the innermost: `is_channels_last_strides_2d`."""
    if len(x.shape) != 4 or not x.strides[1]:
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        if x.strides[dim] < least or (dim == 0 and least == x.strides[1]):
            return False
        least = x.strides[dim] * max(x.shape[dim], 1)
    return True


def _like(tensor: Tensor, shape: Shape) -> Shape:
    """Strides of a result that lies in memory as a tensor of its shape does."""
    if tensor.is_contiguous:
        return contiguous(shape)
    strides = [0] * len(shape)
    step = 1
    for i in _innermost_first(tensor):
        strides[i] = step
        step *= shape[i]
    return tuple(strides)


def _innermost_first(x: Tensor) -> list[int]:
    """Dimensions in the order in which they lie; those that repeat stay where they are.

    `infer_dense_strides` of `ExpandUtils.cpp`.
    """
    places = list(zip(x.strides, x.shape, strict=True))
    if all(x.strides):
        return sorted(range(len(places)), key=lambda i: (*places[i], -i))
    order = list(reversed(range(len(places))))
    for at in range(1, len(order)):
        moving = at
        for before in reversed(range(at)):
            inner, outer = places[order[before]], places[order[moving]]
            if not inner[0] or not outer[0] or inner == outer:
                continue
            if inner < outer:
                break
            order[before], order[moving] = order[moving], order[before]
            moving = before
    return order


def broadcast(*shapes: Shape) -> Shape:
    """The shape of an operation over several.

    Raises:
        NotPlannedError: PyTorch does not broadcast them to one.
    """
    if all(shape == shapes[0] for shape in shapes[1:]):
        return shapes[0]
    length = max(map(len, shapes))
    padded = [(1,) * (length - len(shape)) + shape for shape in shapes]
    found = [{*sizes} - {1} or {1} for sizes in zip(*padded, strict=True)]
    if any(len(sizes) > 1 for sizes in found):
        raise _misfit(f"broadcast {' and '.join(str([*shape]) for shape in shapes)}")
    return tuple(size for [size] in found)


def _misfit(what: str) -> NotPlannedError:
    """What PyTorch would stop at: sizes of a configuration that do not fit each other."""
    return NotPlannedError(f"the sizes of this configuration do not fit: PyTorch cannot {what}")


class Operations:
    """What PyTorch does on a card, as far as memory knows.

    Args:
        card: decides what kernels and libraries need beside results.
        cublas_bytes: of the workspace of a handle of cuBLAS.

    Attributes:
        requests: all that was asked for so far.
        grad: whether gradients are wanted.
        autocast: element bytes of the type that products run in; 0: that of their inputs.
    """

    def __init__(self, card: Chip, cublas_bytes: int) -> None:
        self.card = card
        self.requests = Requests()
        self.grad = False
        self.autocast = 0
        self.backward_runs = False
        self._cublas_bytes = cublas_bytes
        self._handles: dict[bool, int] = {}
        self._numbers = count()
        self._casts: list[Parameter] = []
        self._frame: Frame | None = None
        self._again: Frame | None = None

    # Memory

    def new(
        self, shape: Shape, size: int, strides: Shape | None = None, component: str = "activations"
    ) -> Tensor:
        """A tensor with a storage for itself, contiguous unless strides say otherwise."""
        nbytes = prod(shape) * size
        storage = Storage(self.requests, nbytes, component) if nbytes else None
        return Tensor(shape, contiguous(shape) if strides is None else strides, size, storage)

    def weight(
        self, shape: Shape, size: int, component: str = "weights", trains: bool = False
    ) -> Parameter:
        """A weight."""
        nbytes = prod(shape) * size
        storage = Storage(self.requests, nbytes, component) if nbytes else None
        return Parameter(shape, size, storage, trains)

    def quantised_weight(
        self, shape: Shape, nbytes: int, product: Product | None, component: str = "weights"
    ) -> Parameter:
        """A weight whose numbers take so many bytes, and how rows are multiplied with it, if so."""
        weight = Parameter(shape, QUANTISED, Storage(self.requests, nbytes, component), False)
        weight.product = product
        return weight

    def replace(self, weight: Tensor, size: int) -> None:
        """`weight.data = weight.data.to(...)`: it stays in another type."""
        other = self.new(weight.shape, size, component="weights")
        weight.storage, weight.size = other.storage, size

    def account(self, x: Tensor, component: str) -> None:
        """Say what a tensor's memory is for."""
        if x.storage is not None:
            self.requests.components[x.storage.number] = component

    def inside(self, sizes: Iterable[int]) -> None:
        """What an operator takes beside its results, and gives back."""
        self.requests.passing(sizes)

    @property
    def library_bytes(self) -> int:
        """Workspaces that libraries keep."""
        return sum(self.requests.sizes[number] for number in self._handles.values())

    def product(self) -> None:
        """A product of cuBLAS: the first of a thread takes a workspace, which its handle keeps."""
        if not torch_release.keeps_workspaces():
            self.requests.passing([self._cublas_bytes])
        elif self.backward_runs not in self._handles:
            number = self.requests.came(self._cublas_bytes, "workspace")
            self._handles[self.backward_runs] = number

    # Autograd

    @contextmanager
    def without_gradients(self) -> Iterator[None]:
        """As `torch.no_grad`."""
        before, self.grad = self.grad, False
        try:
            yield
        finally:
            self.grad = before

    def record(
        self,
        inputs: Sequence[Tensor | None],
        saved: Sequence[Tensor | None],
        rule: Rule,
        *results: Tensor,
    ) -> None:
        """Note an operation, where a gradient of its inputs is wanted.

        Args:
            inputs: whose gradients the rule gives.
            saved: what the rule takes; None: not kept.
            rule: see `Node`.
            results: of the operation.
        """
        node = self.noted(inputs, saved, rule, len(results))
        if node is not None:
            for slot, result in enumerate(results):
                result.node, result.slot = node, slot

    def noted(
        self,
        inputs: Sequence[Tensor | None],
        saved: Sequence[Tensor | None],
        rule: Rule,
        results: int = 1,
    ) -> Node | None:
        """The same before there are results, as PyTorch saves inputs before it runs a kernel."""
        if not self.grad:
            return None
        edges: list[Edge] = [
            None if x is None or x.node is None else (x.node, x.slot, x.shape, x.size)
            for x in inputs
        ]
        if not any(edges):
            return None
        node = Node(rule, edges, next(self._numbers), results)
        self._save(node, [x for x in saved if x is not None])
        return node

    def _save(self, node: Node, saved: Saved) -> None:
        if self._again is not None:
            frame = self._again
            for x in saved:
                if frame.owners[frame.seen]() is not None:
                    frame.again[frame.seen] = x.detached()
                frame.seen += 1
            # What runs again has a graph too, which lives where a later layer holds its results.
            node.saved = [x.detached() for x in saved]
            if frame.seen >= len(frame.owners):
                raise _AllSavedError
        elif self._frame is not None:
            owners = self._frame.owners
            node.frame, node.first, node.wants = self._frame, len(owners), len(saved)
            owners += [ref(node)] * len(saved)
        else:
            node.saved = [x.detached() for x in saved]

    def checkpoint(self, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Run a part that saves its input alone, and runs again when its gradient is wanted."""
        if not self.grad:
            return part(x)
        kept = x.detached()
        kept.node = x.node
        frame = self._frame = Frame(lambda: part(kept), self.autocast)
        try:
            return part(x)
        finally:
            self._frame = None
            del frame

    def _run_again(self, frame: Frame) -> None:
        frame.has_run = True
        before, self._again = self.grad, frame
        self.grad, self.autocast = True, frame.autocast
        try:
            frame.run()
        except _AllSavedError:
            pass
        finally:
            self.grad, self.autocast, self._again = before, 0, None
            self.end_autocast()

    def backward(self, loss: Tensor) -> None:
        """From a loss to the gradients of all weights: autograd's engine."""
        root = loss.node
        if not isinstance(root, Node):
            raise TypeError("no gradient of the loss is wanted")
        self.backward_runs = True
        before, self.grad = self.grad, False
        waiting = _dependencies(root)
        buffers: dict[Node, Grads] = {root: [self.new((), FLOAT)]}
        ready: list[tuple[int, Node]] = [(-root.number, root)]
        while ready:
            node = heappop(ready)[1]
            outputs = self._call(node, buffers.pop(node))
            for edge in node.edges:
                self._send(edge, outputs.pop(0), buffers)
                if edge is not None and isinstance(edge[0], Node):
                    target = edge[0]
                    waiting[target] -= 1
                    if not waiting[target] and target in buffers:
                        heappush(ready, (-target.number, target))
            node.edges = []
        self.grad, self.backward_runs = before, False

    def _send(self, edge: Edge, grad: Tensor | None, buffers: dict[Node, Grads]) -> None:
        """A gradient arrives where its operation's input was made."""
        if edge is None or grad is None:
            return
        target, slot, _, _ = edge
        if isinstance(target, Leaf):
            self._arrive(target.parameter, grad)
        else:
            self._add(buffers, target, slot, grad)

    def _call(self, node: Node, grads: Grads) -> Grads:
        saved = node.saved
        if node.frame is not None:
            if node.wants and not node.frame.has_run:
                self._run_again(node.frame)
            saved = [node.frame.again.pop(node.first + i) for i in range(node.wants)]
        outputs: Grads = list(node.rule(saved, grads))
        if node.frame is not None:  # what ran again goes with the call, before casts of gradients
            saved.clear()
        self._fit(outputs, node.edges)
        grads.clear()
        node.saved, node.frame = [], None
        saved.reverse()  # a list lets its last item go first
        saved.clear()
        return outputs

    def _fit(self, outputs: Grads, edges: list[Edge]) -> None:
        """Gradients in the shapes and types of their inputs: `validate_outputs`."""
        for i, edge in enumerate(edges):
            grad = outputs[i]
            if edge is None:
                outputs[i] = None
            elif grad is not None:
                if grad.shape != edge[2]:
                    grad = self._summed_to(grad, edge[2])
                    outputs[i] = grad
                if grad.size != edge[3]:
                    outputs[i] = self.copy(grad, edge[3])
            del grad

    def _summed_to(self, grad: Tensor, shape: Shape) -> Tensor:
        """The gradient of what was broadcast."""
        lead = len(grad.shape) - len(shape)
        dims = [
            i for i, size in enumerate(grad.shape)
            if i < lead or (shape[i - lead] == 1 and size != 1)
        ]  # fmt: skip
        return self.view(self.sum(grad, dims), shape)

    def _add(self, buffers: dict[Node, Grads], node: Node, slot: int, grad: Tensor) -> None:
        """Where an operation's result was used several times, its gradients are added up."""
        grads = buffers.get(node)
        if grads is None:
            grads = buffers[node] = [None] * node.results
        old = grads[slot]
        if old is None:
            grads[slot] = grad
        elif not (
            old.is_dense
            and not old.is_view
            and getrefcount(old) == 3
            and getrefcount(old.storage) == 2
        ):
            grads[slot] = self.new(old.shape, max(old.size, grad.size), _like(old, old.shape))

    def _arrive(self, parameter: Parameter, grad: Tensor) -> None:
        if parameter.grad is None:
            if grad.strides != parameter.strides and not grad.is_contiguous:
                grad = self.copy(grad)
            parameter.grad = grad.detached()
            self.account(grad, "gradients")

    # Views

    def view(self, x: Tensor, shape: Shape, strides: Shape | None = None) -> Tensor:
        """The same elements in another shape.

        Raises:
            NotPlannedError: that shape has more elements, or fewer.
        """
        if prod(shape) != x.elements:
            raise _misfit(f"view {[*x.shape]} as {[*shape]}")
        out = Tensor(shape, contiguous(shape) if strides is None else strides, x.size, x.storage)
        out.is_view = True
        if self.grad and x.node is not None:
            before = x.shape

            def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
                return [self.reshape(_one(grads), before)]

            self.record([x], [], rule, out)
        return out

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        """The same elements in another shape; a copy where no strides say where they lie."""
        strides = _view_strides(x.shape, x.strides, shape)
        return self.view(self.clone(x), shape) if strides is None else self.view(x, shape, strides)

    def contiguous(self, x: Tensor) -> Tensor:
        """A copy where its elements do not lie in order."""
        return x if x.is_contiguous else self.clone(x)

    def transpose(self, x: Tensor, one: int, other: int) -> Tensor:
        """Two dimensions swapped."""
        order = list(range(len(x.shape)))
        order[one], order[other] = order[other], order[one]
        shape = tuple(x.shape[i] for i in order)
        out = self.alias(x, shape, tuple(x.strides[i] for i in order))
        self.record([x], [], lambda saved, grads: [self.transpose(_one(grads), one, other)], out)
        return out

    def permuted(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Dimensions in another order."""
        if list(order) == sorted(order):
            return x
        out = self.alias(x, tuple(x.shape[i] for i in order), tuple(x.strides[i] for i in order))
        back = sorted(range(len(order)), key=lambda i: order[i])
        self.record([x], [], lambda saved, grads: [self.permuted(_one(grads), back)], out)
        return out

    def alias(self, x: Tensor, shape: Shape, strides: Shape) -> Tensor:
        """A view without a gradient."""
        out = Tensor(shape, strides, x.size, x.storage)
        out.is_view = True
        return out

    def expand(self, x: Tensor, shape: Shape) -> Tensor:
        """Repeated without memory along dimensions of size 1."""
        lead = len(shape) - len(x.shape)
        strides = [0] * lead + [
            0 if size == 1 and wanted != 1 else stride
            for size, wanted, stride in zip(x.shape, shape[lead:], x.strides, strict=True)
        ]
        out = self.alias(x, shape, tuple(strides))
        self.record([x], [], lambda saved, grads: [_one(grads)], out)
        return out

    def slice(self, x: Tensor, dim: int, length: int) -> Tensor:
        """A part of a dimension; its gradient is as large as the whole."""
        dim %= len(x.shape)
        shape = (*x.shape[:dim], length, *x.shape[dim + 1 :])
        out = self.alias(x, shape, x.strides)
        whole = x.shape
        self.record([x], [], lambda saved, grads: [self.new(whole, _one(grads).size)], out)
        return out

    def selected(self, x: Tensor, dim: int) -> Tensor:
        """One place of a dimension, `x[:, 0]`; its gradient is as large as the whole."""
        dim %= len(x.shape)
        out = self.alias(x, _without(x.shape, dim), _without(x.strides, dim))
        whole = x.shape
        self.record([x], [], lambda saved, grads: [self.new(whole, _one(grads).size)], out)
        return out

    def split(self, x: Tensor, dim: int, lengths: Sequence[int]) -> list[Tensor]:
        """Parts of a dimension; their gradients are put together."""
        dim %= len(x.shape)
        parts = [
            self.alias(x, (*x.shape[:dim], length, *x.shape[dim + 1 :]), x.strides)
            for length in lengths
        ]
        shape, size = x.shape, x.size
        self.record([x], [], lambda saved, grads: [self.new(shape, size)], *parts)
        return parts

    # Element by element

    def copy(self, x: Tensor, size: int | None = None) -> Tensor:
        """A copy, in another type where a size is given."""
        out = self.new(x.shape, size or x.size, _like(x, x.shape))
        back = x.size
        self.record(
            [x], [],
            lambda saved, grads: [
                _one(grads) if _one(grads).size == back else self.copy(_one(grads), back)
            ],
            out,
        )  # fmt: skip
        return out

    def to(self, x: Tensor, size: int) -> Tensor:
        """In another type; itself where it has that."""
        return x if x.size == size else self.copy(x, size)

    def clone(self, x: Tensor, size: int | None = None) -> Tensor:
        """A copy whose elements lie in order, in another type where a size is given."""
        out = self.new(x.shape, size or x.size)
        back = x.size
        self.record([x], [], lambda saved, grads: [self.to(_one(grads), back)], out)
        return out

    def padded(self, x: Tensor, dim: int, length: int) -> Tensor:
        """Zeros behind a dimension; a copy even where there are none: `constant_pad_nd`."""
        dim %= len(x.shape)
        shape = (*x.shape[:dim], length, *x.shape[dim + 1 :])
        follows = shape == x.shape or _is_channels_last(x)
        out = self.new(shape, x.size, _like(x, shape) if follows else None)
        before = x.shape
        self.record([x], [], lambda saved, grads: [self.new(before, _one(grads).size)], out)
        return out

    def pointwise(
        self, x: Tensor, saves: str = "input", size: int | None = None, steps: int = 0
    ) -> Tensor:
        """A function of each element, such as silu.

        Args:
            x: any shape.
            saves: `input`, `output` or nothing: what its gradient is made from.
            size: of the result's elements.
            steps: temporaries in its gradient, each there beside the one before.
        """
        out = self.new(x.shape, size or x.size, _like(x, x.shape))
        saved = {"input": x, "output": out}.get(saves)

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            like = saved[0] if saved else grad
            before = None
            for _ in range(steps):
                before = self.new(like.shape, like.size, _like(like, like.shape))
            out = self.new(grad.shape, grad.size, _like(like, grad.shape))
            del before
            return [out]

        self.record([x], [saved], rule, out)
        return out

    def scaled(self, x: Tensor, size: int | None = None) -> Tensor:
        """Multiplied by, or divided by, a number."""
        return self.pointwise(x, saves="", size=size)

    def shifted(self, x: Tensor) -> Tensor:
        """A number added."""
        out = self.new(x.shape, x.size, _like(x, x.shape))
        self.record([x], [], lambda saved, grads: [_one(grads)], out)
        return out

    def _over(self, a: Tensor, b: Tensor, size: int | None = None) -> Tensor:
        """A result of two tensors, element by element."""
        shape = broadcast(a.shape, b.shape)
        like = a if a.shape == shape else b
        strides = _like(like, shape) if like.shape == shape else None
        return self.new(shape, size or _promoted(a, b), strides)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum."""
        out = self._over(a, b)
        self.record([a, b], [], lambda saved, grads: [_one(grads), _one(grads)], out)
        return out

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """The product, element by element."""
        out = self._over(a, b)
        wants_a, wants_b = a.node is not None, b.node is not None

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            of_b = self._over(grad, saved[-1]) if wants_b else None
            of_a = self._over(grad, saved[0]) if wants_a else None
            return [of_a, of_b]

        self.record([a, b], [b if wants_a else None, a if wants_b else None], rule, out)
        return out

    def subtracted(self, a: Tensor, b: Tensor) -> Tensor:
        """The difference."""
        out = self._over(a, b)
        wants_b = b.node is not None

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            of_b = self.new(grad.shape, grad.size, _like(grad, grad.shape)) if wants_b else None
            return [grad, of_b]

        self.record([a, b], [], rule, out)
        return out

    def masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x.masked_fill(mask, number)`."""
        out = self.new(x.shape, x.size)

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            return [self.new(grad.shape, grad.size)]

        self.record([x], [mask], rule, out)
        return out

    def clamped(self, x: Tensor, limits: int = 2) -> Tensor:
        """`torch.clamp` to two numbers, or to one."""
        out = self.new(x.shape, x.size, _like(x, x.shape))

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            zero = self.new((), grad.size)
            flags = [self.new(grad.shape, BOOL) for _ in range(limits)]
            of_x = self.new(grad.shape, grad.size)
            del zero, flags
            return [of_x]

        self.record([x], [x], rule, out)
        return out

    def widened(self, x: Tensor) -> Tensor:
        """In float32, where autocast has an operator take that."""
        return self.to(x, FLOAT) if self.autocast else x

    def square(self, x: Tensor) -> Tensor:
        """To the power of two."""
        out = self.new(x.shape, x.size, _like(x, x.shape))

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            x, grad = saved[0], _one(grads)
            power = self.new(x.shape, x.size, _like(x, x.shape))
            double = self.new(x.shape, x.size, _like(x, x.shape))
            of_x = self._over(grad, double)
            del double
            del power
            return [of_x]

        self.record([x], [x], rule, out)
        return out

    def rsqrt(self, x: Tensor) -> Tensor:
        """One over the square root."""
        out = self.new(x.shape, x.size, _like(x, x.shape))

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            halved = self.scaled(_one(grads))
            cubed = self.scaled(saved[0])
            of_x = self._over(halved, cubed)
            del cubed, halved
            return [of_x]

        self.record([x], [out], rule, out)
        return out

    # Reductions

    def sum(self, x: Tensor, dims: Sequence[int], size: int | None = None) -> Tensor:
        """Over dimensions, which stay with size 1."""
        out = self._reduced(x, dims, size)
        whole = x.shape
        self.record([x], [], lambda saved, grads: [self.expand(_one(grads), whole)], out)
        return out

    def deviation(self, x: Tensor) -> Tensor:
        """The standard deviation over the last dimension, which stays."""
        out = self._reduced(x, [-1], None)

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            x, found = saved
            doubled = self.scaled(found)
            of_variance = self._over(_one(grads), doubled)
            self.new(found.shape, BOOL)  # where it is zero
            del doubled
            shares, average = self.scaled(of_variance), self.mean(x)
            less = self.subtracted(x, average)
            of_x = self._over(shares, less)
            del shares, less, average, of_variance
            return [of_x]

        self.record([x], [x, out], rule, out)
        return out

    def mean(self, x: Tensor, size: int | None = None, dim: int = -1) -> Tensor:
        """Over a dimension, which stays."""
        out = self._reduced(x, [dim], size)
        whole, before = x.shape, x.size
        self.record([x], [], lambda saved, grads: [self.new(whole, before)], out)
        return out

    def cumsum(self, x: Tensor) -> Tensor:
        """Sums up to each place of a dimension."""
        out = self.new(x.shape, x.size)

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            flipped = self.new(grad.shape, grad.size)
            summed = self.new(grad.shape, grad.size)
            of_x = self.new(grad.shape, grad.size)
            del summed, flipped
            return [of_x]

        self.record([x], [], rule, out)
        return out

    def extreme(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """The largest, or the smallest, over dimensions, which stay with size 1; no gradient."""
        return self._reduced(x, dims, None, x.size)

    def _reduced(
        self, x: Tensor, dims: Sequence[int], size: int | None, partial: int = 0
    ) -> Tensor:
        reduced = [dim % len(x.shape) for dim in dims]
        shape = tuple(1 if i in reduced else n for i, n in enumerate(x.shape))
        out = self.new(shape, size or x.size)
        summed = Summed(x.shape, x.strides, reduced, x.size)
        shared = shared_bytes(self.card, summed, partial or max(FLOAT, x.size))
        self.inside(filter(None, shared))
        return out

    def softmax(self, x: Tensor, size: int | None = None) -> Tensor:
        """Over the last dimension; a float32 result of half types needs a copy first."""
        if size is not None and size != x.size:
            x = self.copy(x, size)
        out = self.new(x.shape, x.size, _like(x, x.shape))
        self.record([x], [out], self._of_softmax, out)
        return out

    def _of_softmax(self, saved: Saved, grads: Grads) -> list[Tensor | None]:
        of_x = self.new(saved[0].shape, saved[0].size)
        self.inside([of_x.nbytes])
        return [of_x]

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """`LayerNorm` over the last dimension.

        The sums that its gradient shares between blocks are not counted, which it has of more than
        65,536 rows that are narrow.
        """
        x, weight, bias = (self.widened(part) for part in (x, weight, bias))
        rows = (*x.shape[:-1], 1)
        out = self.new(x.shape, x.size)
        mean, root = self.new(rows, FLOAT), self.new(rows, FLOAT)
        shape = weight.shape
        trains = weight.node is not None

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            size = _one(grads).size
            of_x = self.new(saved[0].shape, size)
            others = [self.new(shape, size) if trains else None for _ in range(2)]
            return [of_x, *others]

        self.record([x, weight, bias], [x, mean, root, weight, bias], rule, out)
        return out

    # Joining

    def cat(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """Side by side."""
        first = parts[0]
        dim %= len(first.shape)
        length = sum(part.shape[dim] for part in parts)
        out = self.new(
            (*first.shape[:dim], length, *first.shape[dim + 1 :]), max(p.size for p in parts)
        )
        shapes = [part.shape for part in parts]

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            return [self.alias(grad, shape, grad.strides) for shape in shapes]

        self.record(parts, [], rule, out)
        return out

    def filled(self, parts: Sequence[Tensor]) -> Tensor:
        """Parts of the last dimension, copied into an empty tensor one after another."""
        first = parts[0]
        out = self.new((*first.shape[:-1], sum(part.shape[-1] for part in parts)), first.size)
        for part in parts:
            shape = part.shape

            def rule(saved: Saved, grads: Grads, shape: Shape = shape) -> list[Tensor | None]:
                whole = self.copy(_one(grads))
                of_part = self.new(shape, whole.size)
                self.inside([of_part.nbytes])
                return [whole, of_part]

            self.record([out, part], [], rule, out)
        return out

    def placed(self, out: Tensor, part: Tensor) -> None:
        """`out[:, i] = part`: a part is copied to its place."""
        shape, size = part.shape, part.size

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            whole = self.copy(_one(grads))
            of_place = self.new(shape, whole.size)
            self.inside([of_place.nbytes])
            return [whole, self.to(of_place, size)]

        self.record([out, part], [], rule, out)

    def added_behind(self, x: Tensor, part: Tensor) -> None:
        """`x[1:] += part`, the same for each place of the first dimension."""
        shape = (x.shape[0] - 1, *x.shape[1:])

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            whole = self.copy(_one(grads))
            return [whole, self.new(shape, whole.size)]

        self.record([x, part], [], rule, x)

    # Products

    def end_autocast(self) -> None:
        """The casts of weights go."""
        for weight in self._casts:
            weight.cast = None
        self._casts.clear()

    def _cast(self, x: Tensor) -> Tensor:
        if not self.autocast or x.size != FLOAT:
            return x
        if isinstance(x, Parameter) and x.node is not None and self.grad:
            if x.cast is None:
                x.cast = self.copy(x, self.autocast)
                self._casts.append(x)
            return x.cast
        return self.copy(x, self.autocast)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Take x [..., K] times the transpose of a weight [N, K], and a bias [N] added."""
        if isinstance(weight, Parameter) and weight.product is not None:
            return weight.product(self, x, weight, bias)
        if bias is not None:
            bias = self._cast(bias)
        weight = self._cast(weight)
        x = self._cast(x)
        if not _folds(x):
            x = self.clone(x)
        wants_x, wants_weight = x.node is not None, weight.node is not None
        is_flat = len(x.shape) == 2
        wants_bias = bias is not None and bias.node is not None

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            if not _one(grads).is_contiguous:
                grads[0] = self.clone(_one(grads))
            grad = _one(grads)
            width = grad.shape[-1]
            of_weight = of_x = None
            if wants_weight:
                self.product()
                of_weight = self.new((width, saved[-1].shape[-1]), grad.size)
            if wants_x:
                self.product()
                of_x = self.new((*grad.shape[:-1], saved[0].shape[1]), grad.size)
                of_x.is_view = not is_flat
            return [of_x, of_weight, self._of_rows(grad) if wants_bias else None]

        saved = [weight if wants_x else None, x if wants_weight else None]
        node = self.noted([x, weight, bias], saved, rule)
        del saved
        out = self.new((*x.shape[:-1], weight.shape[0]), x.size)
        self.product()
        out.node = node
        return out

    def _of_rows(self, grad: Tensor) -> Tensor:
        """The gradient of what was added to all rows."""
        width = grad.shape[-1]
        flat = self.alias(grad, (grad.elements // width, width), (width, 1))
        return self.view(self.sum(flat, [0]), (width,))

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """The product of [..., M, K] and [..., K, N]; copies of what does not lie as a batch.

        Raises:
            NotPlannedError: their K differ.
        """
        if a.shape[-1] != b.shape[-2]:
            raise _misfit(f"multiply {[*a.shape]} and {[*b.shape]}")
        right, left = self._cast(b), self._cast(a)  # there until the product is
        batch = broadcast(a.shape[:-2], b.shape[:-2])
        a, b = (self._batched(self._spread(x, batch)) for x in (left, right))
        out = self.new((*batch, a.shape[-2], b.shape[-1]), a.size)
        self.product()
        wants_a, wants_b = a.node is not None, b.node is not None

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            of_a = of_b = None
            if wants_b:
                left = saved[-1]
                of_b = self.new((*left.shape[:-2], left.shape[-1], grad.shape[-1]), grad.size)
                of_b.is_view = True
            if wants_a:
                right = saved[0]
                of_a = self.new((*right.shape[:-2], grad.shape[-2], right.shape[-2]), grad.size)
                of_a.is_view = True
            self.product()
            return [of_a, of_b]

        self.record([a, b], [b if wants_a else None, a if wants_b else None], rule, out)
        del b, a, right, left
        return out

    def convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None, length: int) -> Tensor:
        """A convolution [B, C, length] of each channel of x [B, C, T] with a weight [C, 1, K]."""
        bias = bias and self._cast(bias)
        weight = self._cast(weight)
        x = self._cast(x)
        out = self.new((*x.shape[:2], length), x.size)
        given = (x, weight, bias)
        shapes = [y.shape if y is not None and y.node is not None else None for y in given]

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            size = _one(grads).size
            return [None if shape is None else self.new(shape, size) for shape in shapes]

        self.record(given, [x, weight], rule, out)
        return out

    def solved(self, system: Tensor, x: Tensor) -> Tensor:
        """`linalg.solve_triangular` of [..., N, N] and [..., N, K]: it lies by columns.

        What it takes inside is not counted.
        """
        out = self._by_columns(x)

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            of_x, (system, _) = self._by_columns(_one(grads)), saved
            product = self.new(system.shape, system.size)
            self.product()
            negated = self.new(system.shape, system.size)
            del product
            of_system = self.new(system.shape, system.size)
            del negated
            return [of_system, of_x]

        self.record([system, x], [system, out], rule, out)
        return out

    def _by_columns(self, x: Tensor) -> Tensor:
        *batch, rows, columns = x.shape
        made = self.new((*batch, columns, rows), x.size)
        strides = (*made.strides[:-2], 1, rows)
        made.shape, made.strides = x.shape, strides
        return made

    def einsum(self, spec: str, a: Tensor, b: Tensor) -> Tensor:
        """`torch.einsum` of two tensors: one batched product.

        Dimensions of both that stay are its batch; copies of what does not lie so.
        """
        inputs, out = spec.split("->")
        left, right = inputs.split(",")
        sizes = dict(zip(left + right, a.shape + b.shape, strict=True))
        batch = [n for n in out if n in left and n in right]
        rows = [n for n in out if n not in right]
        columns = [n for n in out if n not in left]
        summed = sorted(n for n in left if n not in out)
        given = [self._cast(a), self._cast(b)]  # there until the product is
        one = self._lined_up(given[0], left, (batch, rows, summed))
        other = self._lined_up(given[1], right, (batch, summed, columns))
        made = self.matmul(one, other)
        del given
        names = [*batch, *rows, *columns]
        whole = self.view(made, tuple(sizes[n] for n in names))
        return self.permuted(whole, [names.index(n) for n in out])

    def _lined_up(self, x: Tensor, names: str, groups: tuple[list[str], ...]) -> Tensor:
        """Dimensions in another order, and those of a group as one."""
        turned = self.permuted(x, [names.index(name) for group in groups for name in group])
        shape = tuple(prod(x.shape[names.index(n)] for n in group) for group in groups)
        return self.reshape(turned, shape)

    def _spread(self, x: Tensor, batch: Shape) -> Tensor:
        """Matrices repeated without memory, as many as the batch has."""
        return x if x.shape[:-2] == batch else self.expand(x, (*batch, *x.shape[-2:]))

    def _batched(self, x: Tensor) -> Tensor:
        """All dimensions but the last two as one: a copy where that cannot be seen as one."""
        return x if _joins(x.shape[:-2], x.strides[:-2]) else self.clone(x)

    def grouped_product(self, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        """Rows [S, K], sorted by group, times the weights [E, N, K] of their groups: [S, N]."""
        out = self.new((x.shape[0], weight.shape[1]), x.size)
        wants_x, wants_weight = x.node is not None, weight.node is not None
        shape = weight.shape

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            of_weight = self.new(shape, grad.size) if wants_weight else None
            of_x = self.new((grad.shape[0], shape[2]), grad.size) if wants_x else None
            return [of_x, of_weight]

        saved = [weight if wants_x else None, ends, x if wants_weight else None]
        self.record([x, weight], saved, rule, out)
        return out

    # Choosing

    def sort(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A row of numbers sorted, and their places; without a gradient."""
        found = self.new(x.shape, x.size), self.new(x.shape, LONG)
        self.inside(sort_bytes(1, x.elements, x.size))
        return found

    def topk(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The largest of each row, and their places."""
        shape = (*x.shape[:-1], count)
        values, places = self.new(shape, x.size), self.new(shape, LONG)
        rows = x.elements // x.shape[-1]
        self.inside(topk_bytes(self.card, rows, x.shape[-1], x.size))
        whole = x.shape
        self.record(
            [x], [places], lambda saved, grads: [self.new(whole, _one(grads).size)], values
        )  # fmt: skip
        return values, places

    def largest(self, x: Tensor) -> Tensor:
        """Of each row; its place is found too, and kept for the gradient."""
        whole, shape = x.shape, (*x.shape[:-1], 1)
        values, places = self.new(shape, x.size), self.new(shape, LONG)
        self.record(
            [x], [places], lambda saved, grads: [self.new(whole, _one(grads).size)], values
        )  # fmt: skip
        return values

    def picked(self, x: Tensor, places: Tensor) -> Tensor:
        """`x.gather(1, places)`."""
        out = self.new(places.shape, x.size)
        whole = x.shape
        self.record([x], [places], lambda saved, grads: [self.new(whole, _one(grads).size)], out)
        return out

    def scattered(self, x: Tensor, places: Tensor, shape: Shape) -> Tensor:
        """A full tensor with numbers at places: `full_like(...).scatter_(1, places, x)`."""
        out = self.new(shape, x.size)
        picked = x.shape
        self.record(
            [x], [places], lambda saved, grads: [self.new(picked, _one(grads).size)], out
        )  # fmt: skip
        return out

    def stacked(self, x: Tensor, times: int) -> Tensor:
        """`x.repeat(times, 1)`."""
        rows, width = x.shape
        out = self.new((times * rows, width), x.size)

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            parts = self.view(_one(grads), (times, rows, width))
            return [self.view(self.sum(parts, [0]), (rows, width))]

        self.record([x], [], rule, out)
        return out

    def rows_of(self, x: Tensor, index: Tensor) -> Tensor:
        """`x[index]`: rows, which may repeat."""
        return self._indexed(x, index, x.shape[1:])

    def numbers_of(self, x: Tensor, index: Tensor) -> Tensor:
        """`x[rows, columns, None]`: a number for each row of an index."""
        return self._indexed(x, index, (1,))

    def _indexed(self, x: Tensor, index: Tensor, each: Shape) -> Tensor:
        """What an index takes of x, of a shape for each of its elements; what repeats is summed."""
        out = self.new((*index.shape, *each), x.size)
        whole = x.shape

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            of_x = self.new(whole, _one(grads).size)
            self.inside(index_put_bytes(saved[0].elements))
            return [of_x]

        self.record([x], [index], rule, out)
        return out

    def rows_added(self, x: Tensor, rows: Tensor, index: Tensor) -> None:
        """`x.index_add_(0, index, rows)`."""
        shape = rows.shape

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            return [grad, self.new(shape, grad.size)]

        self.record([x, rows], [index, rows], rule, x)

    def divided(self, a: Tensor, b: Tensor) -> Tensor:
        """The quotient."""
        out = self._over(a, b)
        wants_a, wants_b = a.node is not None, b.node is not None

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad, of_b = _one(grads), None
            if wants_b:
                negated = self.new(grad.shape, grad.size)
                once = self._over(saved[1], saved[0])
                twice = self.new(once.shape, once.size)
                of_b = self._over(negated, twice)
                del negated, once, twice
            return [self._over(grad, saved[0]) if wants_a else None, of_b]

        self.record([a, b], [b, a if wants_b else None], rule, out)
        return out

    def divided_in_place(self, x: Tensor, other: Tensor) -> None:
        """`x /= other`: a result of x, whose numbers before are kept for the gradient."""
        before = x.node
        if not self.grad or before is None:
            return
        kept = self.new(x.shape, x.size)

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad, before = _one(grads), saved[1]
            negated = self.new(grad.shape, grad.size)
            once = self.new(before.shape, before.size)
            twice = self.new(before.shape, before.size)
            of_other = self.new(grad.shape, grad.size)
            del negated, once, twice
            return [self.new(grad.shape, grad.size), of_other]

        self.record([x, other], [other, kept], rule, x)

    def multiplied_in_place(self, x: Tensor, other: Tensor) -> None:
        """`x *= other`, which is not trained."""

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            return [self.new(grad.shape, grad.size)]

        self.record([x], [other], rule, x)

    def added_in_place(self, x: Tensor, other: Tensor) -> None:
        """`x.add_(other)`, both of one shape."""
        self.record([x, other], [], lambda saved, grads: [_one(grads), _one(grads)], x)

    # What models are made of

    def embedding(self, ids: Tensor, table: Tensor) -> Tensor:
        """A row of a table [V, H] for each of the ids."""
        out = self.new((*ids.shape, table.shape[1]), table.size)
        rows, width = table.shape

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            tokens = saved[0].elements
            of_table = self.new((rows, width), _one(grads).size)
            row_bytes = width * max(FLOAT, of_table.size)
            self.inside(embedding_backward_bytes(tokens, rows, row_bytes))
            return [of_table]

        self.record([table], [ids], rule, out)
        return out

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        """`scaled_dot_product_attention`; grouped heads where no mask is given.

        As `sdpa_attention_forward` calls it: causal attention reads as many keys as queries.

        Args:
            query: [B, H, Q, D].
            key: [B, G, K, D].
            value: [B, G, K, E].
            mask: of booleans or of numbers, broadcast to [B, H, Q, K]; None: none.
            causal: whether a token sees only itself and what is before it.
        """
        if causal and query.shape[2] < key.shape[2]:  # of a static cache, whose rest is masked
            key, value = (self.slice(x, 2, query.shape[2]) for x in (key, value))
        mask = mask and self._cast(mask)  # the last one first
        value, key, query = (self._cast(x) for x in (value, key, query))
        half = query.size < FLOAT
        sizes = _attention_sizes(query, key, value)
        capability = self.card.compute_capability
        cudnn = (
            prefers_cudnn(capability, self.card.vendor)
            and cudnn_suits(sizes, capability)
            and (mask is None or _is_cudnn_mask(mask))
        )
        if cudnn:
            return self._cudnn(query, key, value, mask, sizes)
        flash = (
            capability >= (8, 0)
            and half
            and mask is None
            and sizes.width == sizes.value_width <= 256
            and not (causal and sizes.queries != sizes.keys)
        )
        if flash:
            return self._flash(query, key, value, sizes)
        multiple = 8 if half else 4
        efficient = (
            (sizes.heads == sizes.groups or torch_release.release() >= (2, 14))
            and sizes.width % multiple == sizes.value_width % multiple == 0
            and (capability >= (8, 0) or not half)
        )
        if efficient:
            return self._efficient(query, key, value, mask, sizes)
        autocast, self.autocast = self.autocast, 0  # inside of the operator nothing is cast
        out = self._math(query, key, value, mask, causal)
        self.autocast = autocast
        return out

    def _cudnn(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sizes: AttentionSizes
    ) -> Tensor:
        bias = None if mask is None else self._as_numbers(mask, query)
        batch, heads, queries, _ = query.shape
        seed, offset = (self.new((), LONG) for _ in range(2))
        shape = (batch, heads, queries, sizes.value_width)
        out = self.new(shape, query.size, _like(query, shape))
        wanted = self.grad and any(x.node is not None for x in (query, key, value))
        sums = self.new((batch, heads, queries), FLOAT) if wanted else None
        self.inside(cudnn_forward_bytes(self.card, sizes))

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad = _one(grads)
            key, query, value = saved[-7:-4]  # a mask is before them
            outs: Grads = [
                self.new(x.shape, x.size, _like(x, x.shape)) for x in (query, key, value)
            ]
            copy = 0 if grad.strides[-1] == 1 else grad.nbytes
            self.inside(cudnn_backward_bytes(sizes, copy))
            return outs

        saved = [bias, key, query, value, sums, out, offset, seed]
        self.record([query, key, value], saved, rule, out)
        return out

    def _flash(self, query: Tensor, key: Tensor, value: Tensor, sizes: AttentionSizes) -> Tensor:
        if sizes.width % 8:
            raise NotPlannedError(f"attention heads of {sizes.width} channels are not planned")
        batch, heads, queries, _ = query.shape
        out = self.new(query.shape, query.size, _like(query, query.shape))
        beside = [
            self.new((batch, heads, queries), FLOAT),
            self.new((2,), LONG),
            self.new((), LONG),
        ]
        self.inside(flash_forward_bytes(self.card, sizes))

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            grad, (key, query, value) = _one(grads), saved[:3]
            outs: Grads = [
                self.new(x.shape, x.size, _like(x, x.shape)) for x in (query, key, value)
            ]
            copies = [
                x.nbytes for x in (grad, saved[4])
                if not self.alias(x, _swapped(x.shape), _swapped(x.strides)).is_contiguous
            ]  # fmt: skip
            self.inside([*copies, *flash_backward_bytes(sizes)])
            return outs

        saved = [key, query, value, beside[0], out, *beside[1:]]
        self.record([query, key, value], saved, rule, out)
        return out

    def _of_heads(self, x: Tensor) -> Tensor:
        """A gradient of x [B, H, T, D], which lies as [B, T, H, D]."""
        batch, heads, tokens, width = x.shape
        made = self.new((batch, tokens, heads, width), x.size)
        out = self.alias(made, x.shape, _swapped(made.strides))
        out.is_view = False
        return out

    def _efficient(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sizes: AttentionSizes
    ) -> Tensor:
        bias = None if mask is None else self._bias(mask, query, sizes.keys)
        batch, heads, queries, _ = query.shape
        out = self.transpose(self.new((batch, queries, heads, sizes.value_width), query.size), 1, 2)
        out.is_view = False
        wanted = self.grad and any(x.node is not None for x in (query, key, value))
        sums = self.new((batch, heads, -(-queries // 32) * 32 if wanted else 0), FLOAT)
        self.inside(efficient_forward_bytes(sizes))

        def rule(saved: Saved, grads: Grads) -> list[Tensor | None]:
            query, key, value = saved[:3]
            outs: Grads = [self._of_heads(x) for x in (query, key, value)]
            self.inside(efficient_backward_bytes(sizes))
            return outs

        saved = [query, key, value, out, sums, bias]  # the seed of dropout is on the CPU
        self.record([query, key, value], saved, rule, out)
        return out

    def _bias(self, mask: Tensor, query: Tensor, keys: int) -> Tensor:
        """A mask as numbers, its rows padded to whole multiples of 8."""
        mask = self._as_numbers(mask, query)
        if keys % 8:
            rest = 8 - keys % 8
            mask = self.new((*mask.shape[:-1], keys + rest), query.size)
        return mask

    def _as_numbers(self, mask: Tensor, query: Tensor) -> Tensor:
        """What is added to the scores, of a mask of booleans in the type of the queries."""
        if mask.size != BOOL:
            return mask
        numbers = [self.new((), query.size) for _ in range(2)]
        mask = self.new(mask.shape, query.size, _expanded(mask))
        del numbers
        return mask

    def _math(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        """Without a kernel: `_scaled_dot_product_attention_math`."""
        given, heads = query.size, query.shape[1]
        if mask is not None and mask.size == BOOL:
            number = self.new((), given)
            mask = self.new(mask.shape, given)
            del number
        query, key, value = (self.to(x, FLOAT) for x in (query, key, value))
        query = self.scaled(query)
        if causal:
            ones = self.new((query.shape[-2], key.shape[-2]), BOOL)
            lower = self.new(ones.shape, BOOL)
            del ones
            number = self.new((), query.size)
            mask = self.new(lower.shape, query.size)
            del number, lower
        if key.shape[1] != heads:
            key, value = (self.interleaved(x, 1, heads // x.shape[1]) for x in (key, value))
        turned = self.transpose(key, 2, 3)
        scores = self.matmul(query, self.scaled(turned))
        del turned
        probabilities = self.new(scores.shape, scores.size)
        self.inside([
            scores.elements, scores.elements // scores.shape[-1],
            -(scores.elements // scores.shape[-1]), -scores.elements,
        ])  # fmt: skip
        self.record([scores], [probabilities], self._of_softmax, probabilities)
        scores = probabilities
        del probabilities
        returned = self.to(scores, given)
        out = self.to(self.matmul(scores, value), given)
        del returned
        return out

    def interleaved(self, x: Tensor, dim: int, times: int) -> Tensor:
        """`x.repeat_interleave(times, dim)`; a copy even where that is once."""
        dim %= len(x.shape)
        before, behind = x.shape[: dim + 1], x.shape[dim + 1 :]
        wide = self.view(x, (*before, 1, *behind), _inserted(x.strides, dim + 1))
        wide = self.clone(self.expand(wide, (*before, times, *behind)))
        return self.view(wide, (*x.shape[:dim], times * x.shape[dim], *behind))

    def repeated(self, x: Tensor, times: int) -> Tensor:
        """[B, G, T, D] with each head several times: `repeat_kv`."""
        batch, groups, tokens, width = x.shape
        if times == 1:
            return x
        shape = (batch, groups, times, tokens, width)
        wide = self.view(x, (batch, groups, 1, tokens, width), _inserted(x.strides, 2))
        return self.reshape(self.expand(wide, shape), (batch, groups * times, tokens, width))

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of float32 logits [T, V]."""
        chances = self.new(logits.shape, logits.size)
        loss = self.new((), FLOAT)
        total = self.new((), FLOAT)

        def of_loss(saved: Saved, grads: Grads) -> list[Tensor | None]:
            return [self.new(saved[0].shape, FLOAT)]

        def of_chances(saved: Saved, grads: Grads) -> list[Tensor | None]:
            return [self.new(saved[0].shape, FLOAT)]

        self.record([logits], [chances], of_chances, chances)
        self.record([chances], [chances, labels, total], of_loss, loss)
        del total
        return loss


def _dependencies(root: Node) -> dict[Node, int]:
    """How many results each operation's gradient waits for."""
    waiting: dict[Node, int] = {}
    stack, seen = [root], {root}
    while stack:
        for edge in stack.pop().edges:
            if edge is not None and isinstance(edge[0], Node):
                target = edge[0]
                waiting[target] = waiting.get(target, 0) + 1
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
    return waiting


def _view_strides(shape: Shape, strides: Shape, wanted: Shape) -> Shape | None:
    """Strides by which another shape sees the same elements; None: there are none.

    `computeStride_impl` of `TensorUtils.cpp`: dimensions that lie one in the other are one chunk,
    and a wanted dimension does not reach over two.
    """
    found = [1] * len(wanted)
    at, step = len(wanted) - 1, strides[-1] if strides else 1
    elements = seen = 1
    for d in reversed(range(len(shape))):
        elements *= shape[d]
        if d and (shape[d - 1] == 1 or strides[d - 1] == elements * step):
            continue
        while at >= 0 and (seen < elements or wanted[at] == 1):
            found[at] = seen * step
            seen *= wanted[at]
            at -= 1
        if seen != elements:
            return None
        if d:
            step, elements, seen = strides[d - 1], 1, 1
    return tuple(found)


def _joins(shape: Shape, strides: Shape) -> bool:
    """Whether dimensions can be seen as one."""
    found = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    return all(outer == n * inner for (_, outer), (n, inner) in pairwise(found))


def _folds(x: Tensor) -> bool:
    """Whether it can be seen as a matrix whose rows lie in order."""
    return x.strides[-1] == 1 and _joins(x.shape[:-1], x.strides[:-1])


def _one(grads: Grads) -> Tensor:
    """The gradient of an operation's first result."""
    grad = grads[0]
    if grad is None:
        raise NotPlannedError("an operation whose first result is not used is not planned")
    return grad


def _promoted(a: Tensor, b: Tensor) -> int:
    """Element bytes of a result: of the wider, but a lone number does not widen."""
    if not a.shape:
        return b.size
    return a.size if not b.shape else max(a.size, b.size)


def _expanded(x: Tensor) -> Shape:
    """Strides of a result of what is expanded: dimensions that repeat come first."""
    order = sorted(range(len(x.shape)), key=lambda i: (-x.strides[i], i))
    strides, step = [0] * len(order), 1
    for i in reversed(order):
        strides[i], step = step, step * x.shape[i]
    return tuple(strides)


def _without(shape: Shape, dim: int) -> Shape:
    return (*shape[:dim], *shape[dim + 1 :])


def _swapped(shape: Shape) -> Shape:
    return (shape[0], shape[2], shape[1], shape[3])


def _inserted(strides: Shape, at: int) -> Shape:
    return (*strides[:at], 0, *strides[at:])


def _is_cudnn_mask(mask: Tensor) -> bool:
    """Whether cuDNN adds such a mask: no gradient of it is wanted."""
    return len(mask.shape) in (2, 4) and mask.node is None and mask.strides[-1] == 1


def _attention_sizes(query: Tensor, key: Tensor, value: Tensor) -> AttentionSizes:
    batch, heads, queries, width = query.shape
    return AttentionSizes(
        batch=batch,
        heads=heads,
        groups=key.shape[1],
        queries=queries,
        keys=key.shape[2],
        width=width,
        value_width=value.shape[3],
        element_bytes=query.size,
    )
