"""What every test of the bundled model shares: fresh seeds, poisoned memory, a tiny model."""

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.seeds import seed_of
from tritter_model import labels
from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.transformer import Transformer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """What random tensors are made from."""
    number = seed_of(request.node.name)
    torch.manual_seed(number)
    return number


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every uninitialised tensor with NaN (integers: their largest number) when it is made."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def config() -> ModelConfig:
    """A model that runs in milliseconds: grouped queries, widths that no block divides."""
    return ModelConfig(
        hidden_size=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=20,
        intermediate_size=100,
        vocab_size=131,
    )


@pytest.fixture
def run(config: ModelConfig) -> RunConfig:
    """A prompt of 50 tokens and 6 new ones, through an int4 cache in groups of 16."""
    return RunConfig(
        model=config,
        cache=CacheConfig(dtype="int4", group_size=16, attention_sinks=4),
        context=56,
        prefill_chunk=13,
        new_tokens=6,
        multiprocessors=3,
    )


@pytest.fixture
def trained(config: ModelConfig, seed: int) -> Transformer:
    """The tiny model with master weights, norms included, that are no longer their initial ones."""
    model = Transformer(config, CPU, trainable=True, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@dataclass(frozen=True)
class Made:
    """A storage as it was first seen: what made it, its label, its bytes, its tensor."""

    operator: str
    label: str
    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    key: int


class Recording(TorchDispatchMode):
    """Every operator that is called, every storage that it makes, and those that are still there.

    A storage is the memory behind tensors; views make none.

    Attributes:
        calls: names of the operators.
        made: the new storages; what an operator is given is left out.
        alive: bytes of each storage of `made` that has not been freed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.made: list[Made] = []
        self.alive: dict[int, int] = {}
        self._given: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        for tensor in self._unknown((args, kwargs)):
            self._given.add(tensor.untyped_storage()._cdata)
        out = func(*args, **(kwargs or {}))
        self.calls.append(str(func))
        for tensor in self._unknown(out):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            self.alive[key] = size
            self.made.append(
                Made(str(func), labels.current(), size, tuple(tensor.shape), tensor.dtype, key)
            )
        return out

    def labels_of(self, tensors: Iterable[Tensor]) -> set[str]:
        """What the storages of tensors that are still there were made for."""
        last = {made.key: made.label for made in self.made}  # an address may have come twice
        return {last[tensor.untyped_storage()._cdata] for tensor in tensors}

    def _unknown(self, values: Any) -> Iterator[Tensor]:
        """Tensors whose storage is seen for the first time."""
        for leaf in torch.utils._pytree.tree_leaves(values):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.alive.keys() | self._given:
                    weakref.finalize(storage, self._free, storage._cdata)
                    yield leaf

    def _free(self, key: int) -> None:
        self.alive.pop(key, None)
        self._given.discard(key)


@pytest.fixture
def recording() -> type[Recording]:
    """The recording mode; use as `with recording() as events:`."""
    return Recording


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """The storages that autograd keeps for the backward pass, each counted once."""

    def __init__(self, besides: list[Tensor]) -> None:
        self.besides = {tensor.untyped_storage()._cdata for tensor in besides}
        self.storages: dict[int, Any] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.besides:
            self.storages[storage._cdata] = storage
        return tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(storage.nbytes() for storage in self.storages.values())


@pytest.fixture
def saved() -> type[Saved]:
    """Counts saved tensors; use as `with saved(besides=[parameters and inputs]) as kept:`."""
    return Saved


@pytest.fixture
def with_model(run: RunConfig) -> Any:
    """`with_model(run, head_dim=16)`: the run with some of its model's settings replaced."""

    def changed(case: RunConfig, **settings: Any) -> RunConfig:
        return replace(case, model=replace(case.model, **settings))

    return changed
