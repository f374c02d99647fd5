"""Layers that ask for what an equal layer before them asked for.

Most layers of a model are equal, and in one call each asks for the same storages in the same order.
So one of them is run, and what it asked for is written down again for each that follows. Deep
models are planned several times as fast so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple

from tritter_mem.models.layer_run import LayerRun
from tritter_mem.models.shape_tensors import Requests, Shape, Storage, Tensor

Part = Callable[[Tensor, LayerRun], Tensor]


class _Result(NamedTuple):
    """A tensor that a layer leaves: its form, and which storage it is over.

    Attributes:
        storage: counted as in the events; None: it has none.
    """

    shape: Shape
    strides: Shape
    size: int
    is_view: bool
    storage: int | None


class _Pattern(NamedTuple):
    """What a layer asked for, and what it left.

    Attributes:
        sizes, components: of the storages that it made.
        events: as in `Requests`, its own storages counted from 0. One that was there before has a
            number behind those.
        gone: storages from before that it let go, counted as in the events.
        output: its result.
        cached: what is cached of it afterwards, by name.
        returned: what its modules return beside their result.
    """

    sizes: tuple[int, ...]
    components: tuple[str, ...]
    events: tuple[int, ...]
    gone: tuple[int, ...]
    output: _Result
    cached: Mapping[str, _Result]
    returned: tuple[_Result, ...]


class Repeats:
    """The layers of one call, without gradients.

    Args:
        requests: where they are written down.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._patterns: dict[Hashable, _Pattern] = {}

    def run(self, kind: Hashable, part: Part, x: Tensor, run: LayerRun) -> Tensor:
        """The result of a layer, which runs where none that is equal has run in this call.

        Args:
            kind: equal for layers that are equal, their weights included.
            part: runs the layer. Where anything but its result, its cache and what it returns
                holds a tensor of its own afterwards, each layer runs.
            x: its input.
            run: of the layer.
        """
        key = kind, _form(x), *((name, _form(cached)) for name, cached in run.cache.items())
        known = self._patterns.get(key)
        if known is not None:
            return self._again(known, x, run)
        before = _numbers([x, *run.cache.values()])
        since = len(self._requests.sizes), len(self._requests.events)
        shared = dict(run.step.shared)
        output = part(x, run)
        # What it leaves for later layers would have to be left by each.
        found = self._pattern(since, before, output, run) if shared == run.step.shared else None
        if found is not None:
            self._patterns[key] = found
        return output

    def _pattern(
        self, since: tuple[int, int], before: list[int], output: Tensor, run: LayerRun
    ) -> _Pattern | None:
        """What was asked for; None where something else holds a part of it.

        Args:
            since: how many storages and events there were.
            before: storages of the input and the cache.
            output: of the layer.
            run: of the layer.
        """
        requests, (first, start) = self._requests, since
        own = len(requests.sizes) - first
        names = {number: own + at for at, number in enumerate(before)}
        names |= {first + at: at for at in range(own)}
        left = {name for number, name in names.items() if number != before[0]}
        events = []
        for event in requests.events[start:]:
            name = names.get(event if event >= 0 else ~event)
            if name is None:
                return None
            events.append(name if event >= 0 else ~name)
            if event < 0:
                left.discard(name)
        kept = _numbers([output, *run.cache.values(), *run.returned])
        if not left <= {names.get(number) for number in kept} <= {*names.values()}:
            return None
        return _Pattern(
            tuple(requests.sizes[first:]),
            tuple(requests.components[first:]),
            tuple(events),
            tuple(~event for event in events if event < 0 and ~event >= own),
            _result(output, names),
            {name: _result(cached, names) for name, cached in run.cache.items()},
            tuple(_result(returned, names) for returned in run.returned),
        )

    def _again(self, pattern: _Pattern, x: Tensor, run: LayerRun) -> Tensor:
        """Ask for the same for another layer."""
        requests, before = self._requests, [x, *run.cache.values()]
        first = len(requests.sizes)
        numbers = [*range(first, first + len(pattern.sizes)), *_numbers(before)]
        storages = {x.storage.number: x.storage for x in before if x.storage is not None}
        requests.sizes += pattern.sizes
        requests.components += pattern.components
        requests.events += [numbers[e] if e >= 0 else ~numbers[~e] for e in pattern.events]
        for name in pattern.gone:
            storages.pop(numbers[name]).has_gone()

        def made(form: _Result) -> Tensor:
            storage = None
            if form.storage is not None:
                number = numbers[form.storage]
                storage = storages.get(number) or Storage.known(requests, number)
                storages[number] = storage
            return Tensor(form.shape, form.strides, form.size, storage, form.is_view)

        cached = {name: made(form) for name, form in pattern.cached.items()}
        run.cache.clear()
        run.cache.update(cached)
        run.returned += map(made, pattern.returned)
        return made(pattern.output)


def _form(x: Tensor) -> Hashable:
    return x.shape, x.strides, x.size, x.is_view, x.storage is None


def _numbers(tensors: Iterable[Tensor]) -> list[int]:
    """Storages of tensors, each once, in their order."""
    found = (x.storage.number for x in tensors if x.storage is not None)
    return list(dict.fromkeys(found))


def _result(x: Tensor, names: dict[int, int]) -> _Result:
    storage = None if x.storage is None else names[x.storage.number]
    return _Result(x.shape, x.strides, x.size, x.is_view, storage)
