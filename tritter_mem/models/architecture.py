"""What a model is, described once: its widths and its layers, as data.

A layer is a sequence of blocks, such as attention and an MLP. A kind of block carries its own
formulas: its weights and its cache. A block of the bundled model also has tables of its steps:
which tensors are alive at each, and what training keeps. The planner adds them up without knowing
the kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar, Generic, TypeVar

from tritter_mem.models.formats import TRAINED_PACKING, StorageFormat
from tritter_mem.models.vision_towers import VisionTower

Shape = tuple[int, int]
"""Outputs and inputs of a linear layer."""
Storages = tuple[int, ...]
"""Bytes of what is allocated one after another; 0 for what a case does not have."""
Tensors = Mapping[str, Storages]
"""Tensors by name, each with its storages; no entry for what a case does not have."""

EXPANDED_ROWS = 4096
"""Rows of int8 and int4 weights that are expanded at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Tokens that run at once, and how their numbers are stored.

    Attributes:
        tokens: of all sequences together.
        batch: sequences.
        hidden: width of the residual stream.
        weights: storage of the linear layers in inference.
        compute: storage of activations.
        master: storage of trained weights and of their gradients.
    """

    tokens: int
    batch: int
    hidden: int
    weights: StorageFormat
    compute: StorageFormat
    master: StorageFormat

    def activation_bytes(self, width: int) -> int:
        """Rows of so many channels in the activations' type."""
        return self.tokens * width * self.compute.element_bytes

    def activation(self, width: int) -> Storages:
        """The same as a tensor."""
        return (self.activation_bytes(width),)

    def quantised(self, width: int) -> Storages:
        """What a linear layer makes of its input: int8 rows for ternary weights, else nothing.

        int8 rows are codes, and for each token a float32 scale and an int32 sum.
        """
        tokens = self.tokens
        return (tokens * width, 4 * tokens, 4 * tokens) if self.weights.is_ternary else ()

    def expanded(self, shape: Shape) -> Storages:
        """int8 and int4 weights are expanded for a product, a block of rows at a time."""
        if self.weights.is_trainable:
            return ()
        outputs, inputs = shape
        return (min(EXPANDED_ROWS, outputs) * inputs * self.compute.element_bytes,)

    def rounded(self, shape: Shape) -> Storages:
        """What a training product makes of its weights: packed ones and a scale, or a cast."""
        outputs, inputs = shape
        if self.weights.is_ternary:
            packing = TRAINED_PACKING
            return outputs * packing.code_bytes(inputs), outputs * packing.scale_bytes
        return (outputs * inputs * self.compute.element_bytes,) if self.casts else ()

    @property
    def casts(self) -> bool:
        """Whether activations have another type than trained weights."""
        return self.compute.name != self.master.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """The key-value cache of a case.

    Attributes:
        format: storage of keys and values.
        compute: storage of activations, and so of sinks and tail.
        group: tokens that share a key's scale and minimum; channels that share a value's.
        sinks: first tokens that stay, in the activations' type.
        context: tokens of each sequence.
        batch: sequences.
    """

    format: StorageFormat
    compute: StorageFormat
    group: int
    sinks: int
    context: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A tensor of weights, or several of one shape and name.

    Attributes:
        name: path of its module in the layer, as in a checkpoint.
        shape: of one; outputs and inputs where it is a linear layer's.
        is_linear: whether it is the matrix of a linear layer, which quantisation stores in fewer
            bits. Most routers of experts do not count as such: they are no `nn.Linear`.
        is_parameter: whether training changes it. Others are in the checkpoint all the same.
        copies: how many there are of it, such as experts.
        active: how many of them one token passes through; None: all.
        element_bytes: of an element whatever the type of weights; None: as in that type.
    """

    name: str
    shape: tuple[int, ...]
    is_linear: bool = False
    is_parameter: bool = True
    copies: int = 1
    active: int | None = None
    element_bytes: int | None = None

    @property
    def elements(self) -> int:
        """Of all copies."""
        return self.copies * prod(self.shape)

    @property
    def active_elements(self) -> int:
        """Of the copies that one token passes through."""
        return prod(self.shape) * (self.copies if self.active is None else self.active)


class Block(ABC):
    """One block of a layer; a kind is a subclass."""

    __slots__ = ()

    @abstractmethod
    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """All its weights, for a residual stream of `hidden` channels."""

    def cache_bytes(self, cache: Cache) -> int:
        """Its part of the key-value cache, all sequences."""
        del cache
        return 0


class SteppedBlock(Block):
    """A block of the bundled model, between two points of the residual stream.

    Tables name the tensors that are alive at each step, without what other blocks of the layer
    hold. `x` is the block's input, `y` its last product, `sum` the residual stream behind it.

    Attributes:
        STORED: names of its weights, linear layers and norms, in the order in which they are made.
        INFERENCE: step to the tensors that are alive, in the order in which they are made.
        FORWARD: the same for the forward pass of training. The last two steps are the block's last
            product, and the sum.
        SAVED_SINCE: what the backward pass needs, and the number of the step from which it is kept.
        RESULTS: steps whose result a selective checkpointing policy may keep.
        KEPT: what a selective policy keeps beside the layer's input.
        BACKWARD: step to the tensors that are alive, and to the gradients of the block's weights
            that are there.
    """

    __slots__ = ()
    STORED: ClassVar[tuple[str, ...]]
    INFERENCE: ClassVar[Mapping[str, str]]
    FORWARD: ClassVar[Mapping[str, str]]
    SAVED_SINCE: ClassVar[Mapping[str, int]]
    RESULTS: ClassVar[Mapping[str, str]]
    KEPT: ClassVar[Mapping[str, tuple[str, ...]]]
    BACKWARD: ClassVar[Mapping[str, tuple[str, str]]]

    def inference_steps(self, rows: Rows) -> Mapping[str, str]:
        """`INFERENCE`, or what takes its place for these rows."""
        del rows
        return self.INFERENCE

    def inference_shared(self, rows: Rows) -> Storages:
        """What all layers of a step read, computed once before them."""
        del rows
        return ()

    @abstractmethod
    def linears(self, hidden: int) -> dict[str, Shape]:
        """Its linear layers by name, for a residual stream of `hidden` channels."""

    @abstractmethod
    def norms(self, hidden: int) -> dict[str, int]:
        """Elements of its norms' weights by name; 0 for one that it does not have."""

    def parameters(self, hidden: int) -> dict[str, int]:
        """Elements of all its weights by name, norms included."""
        linears = {name: rows * columns for name, (rows, columns) in self.linears(hidden).items()}
        return linears | self.norms(hidden)

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Those of its linear layers, and of its norms."""
        linears = self.linears(hidden).items()
        return tuple(Weight(name=name, shape=shape, is_linear=True) for name, shape in linears) + (
            tuple(Weight(name=name, shape=(count,)) for name, count in self.norms(hidden).items())
        )

    def stored(self, hidden: int, weights: StorageFormat, norms: StorageFormat) -> Storages:
        """Its weights, as inference stores them."""
        linears, widths = self.linears(hidden), self.norms(hidden)
        parts: list[int] = []
        for name in self.STORED:
            if name in linears:
                parts += weights.weight(*linears[name])
            else:
                parts.append(widths[name] * norms.element_bytes)
        return tuple(parts)

    def cache(self, cache: Cache) -> Storages:
        """Its part of the key-value cache, all sequences, storage by storage."""
        del cache
        return ()

    def cache_bytes(self, cache: Cache) -> int:
        """Its part of the key-value cache, all sequences."""
        return sum(self.cache(cache))

    def cache_scratch(
        self, rows: Rows, cache: Cache, cached: bool, multiprocessors: int
    ) -> Storages:
        """What reading the cache takes beside it: `attention_scratch` in `INFERENCE`.

        Args:
            rows: the tokens that run.
            cache: the case's cache.
            cached: whether the cache holds tokens before them.
            multiprocessors: of the card, for which attention of one token a sequence is split.
        """
        del rows, cache, cached, multiprocessors
        return ()

    @abstractmethod
    def tensors(self, rows: Rows) -> Tensors:
        """The tensors of `INFERENCE`, `attention_scratch` aside."""

    @abstractmethod
    def trained_tensors(self, rows: Rows) -> Tensors:
        """The tensors of `FORWARD` and `BACKWARD`."""


AnyBlock_co = TypeVar("AnyBlock_co", bound=Block, covariant=True)


@dataclass(frozen=True)
class Layer(Generic[AnyBlock_co]):
    """One layer: its blocks, in the order in which they run."""

    blocks: tuple[AnyBlock_co, ...]

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Weights of all blocks."""
        return tuple(weight for block in self.blocks for weight in block.weights(hidden))

    def linears(self, hidden: int) -> dict[str, Shape]:
        """Linear layers of all blocks by name, where each has one weight."""
        linears = (weight for weight in self.weights(hidden) if weight.is_linear)
        return {weight.name: (weight.shape[0], weight.shape[1]) for weight in linears}

    def norms(self, hidden: int) -> dict[str, int]:
        """Elements of the other weights of all blocks by name."""
        weights = self.weights(hidden)
        return {weight.name: weight.elements for weight in weights if not weight.is_linear}

    def cache_bytes(self, cache: Cache) -> int:
        """Its part of the key-value cache, all sequences."""
        return sum(block.cache_bytes(cache) for block in self.blocks)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A language model.

    Attributes:
        name: of the architecture, as `model_type` of a `config.json`.
        hidden: width of the residual stream.
        vocabulary: rows of the embedding.
        tied: whether the output projection is the embedding.
        layers: in order; equal ones are one object, or compare equal.
        vision: the tower before it; None: none.
    """

    name: str
    hidden: int
    vocabulary: int
    tied: bool
    layers: tuple[Layer[SteppedBlock], ...]
    vision: VisionTower | None = None

    @cached_property
    def counted_layers(self) -> Mapping[Layer[SteppedBlock], int]:
        """Each different layer, and how many there are of it."""
        return Counter(self.layers)

    @property
    def tables(self) -> int:
        """Embedding tables: one, or two where the output projection has weights for itself."""
        return 1 if self.tied else 2

    @property
    def linear_parameters(self) -> int:
        """Parameters of all linear layers."""
        return sum(
            count * outputs * inputs
            for layer, count in self.counted_layers.items()
            for outputs, inputs in layer.linears(self.hidden).values()
        )

    @property
    def norm_parameters(self) -> int:
        """Parameters of all norms, the last one included."""
        return self.hidden + sum(
            count * sum(layer.norms(self.hidden).values())
            for layer, count in self.counted_layers.items()
        )

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding and, unless it is tied, of the output projection."""
        return self.tables * self.vocabulary * self.hidden

    @property
    def vision_parameters(self) -> int:
        """Parameters of the vision tower and its projection; 0 without one."""
        return 0 if self.vision is None else self.vision.parameters(self.hidden)

    @property
    def parameters(self) -> int:
        """All parameters, the vision tower's included."""
        language = self.linear_parameters + self.norm_parameters + self.embedding_parameters
        return language + self.vision_parameters
