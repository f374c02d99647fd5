"""Results on `meta` that are remembered by their arguments' shapes are those that PyTorch gives."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tritter_mem.simulation.events import Event
from tritter_mem.simulation.operators import MetaResults
from tritter_mem.simulation.recorder import Recorder

aten = torch.ops.aten


def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cases() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    numbers = on_meta(3, 4, dtype=torch.int64)
    yield aten.mul.Tensor, (on_meta(3, 4), on_meta(4, 3).t())
    yield aten.mul.Tensor, (on_meta(3, 1), on_meta(4))
    for number in (2, 2.0, True):
        yield aten.mul.Tensor, (numbers, number)
    yield aten._to_copy.default, (on_meta(3, 4).t(),)
    yield aten.cat.default, ([on_meta(3, 4), on_meta(5, 4)],)
    yield aten.cat.default, ([on_meta(3, 4), on_meta(5, 4)], 0)
    yield aten._unsafe_view.default, (on_meta(3, 4), [12])
    yield aten.t.default, (on_meta(3, 4),)
    yield aten.topk.default, (on_meta(3, 4), 2)
    yield aten.sum.dim_IntList, (numbers, [0])


@pytest.mark.parametrize(("func", "args"), list(cases()))
def test_a_second_result_is_like_the_first(func: Any, args: tuple[Any, ...]) -> None:
    results = MetaResults()
    for other, others in cases():  # all are known now
        results.run(other, others, {})
    expected, found = func(*args), results.run(func, args, {})
    pairs = (
        [(expected, found)] if isinstance(expected, Tensor) else zip(expected, found, strict=True)
    )
    for one, other in pairs:
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
        assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()


def test_a_view_stays_a_view() -> None:
    results, base = MetaResults(), on_meta(3, 4)
    for _ in range(3):
        view = results.run(aten._unsafe_view.default, (base, [12]), {})
        assert view.untyped_storage()._cdata == base.untyped_storage()._cdata


def test_values_on_the_cpu_are_computed() -> None:
    results, one = MetaResults(), torch.ones(2)
    assert results.run(aten.add.Tensor, (one, one), {}).tolist() == [2, 2]
    assert results.run(aten.add.Tensor, (one, one * 2), {}).tolist() == [3, 3]


def events() -> list[Event]:
    with Recorder("meta") as recorder, torch.device("meta"):
        layers = [nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(3)]
        model = nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            model(torch.empty(2, 8, 32)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return list(recorder.log)


def test_a_recording_is_the_same_with_and_without() -> None:
    with patch.object(MetaResults, "run", lambda self, func, args, kwargs: func(*args, **kwargs)):
        plain = events()
    assert events() == plain


class Calls(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_another_mode_sees_every_call() -> None:
    x = on_meta(3, 3)
    recorder = Recorder("meta")
    with Calls() as calls, recorder:
        for _ in range(4):
            x @ x
    assert calls.count == 4
