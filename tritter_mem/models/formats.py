"""How numbers are stored: one row a format, read by profiles, plans and suggestions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Use = Literal["weights", "embeddings", "kv_cache"]
NEEDS_TRAINING = "needs a model trained that way"
COSTS_QUALITY = "costs quality"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageFormat:
    """One way to store the numbers of a tensor.

    Attributes:
        name: as profiles call it.
        bits: of one element's code; codes below 8 bits share a byte, as many as fit.
        uses: what a profile may store in it.
        is_float: whether an element is a floating-point number by itself.
        is_ternary: whether weights are -1, 0 and 1, and their products take int8 activations.
        scale_bytes: of each scale of a weight; 0 where a weight has none.
        group: inputs that share a weight's scale; None: all inputs of an output.
        row_unit: bytes that the codes of a weight's row are a multiple of,
        row_unit_from: where a row has so many inputs.
        title: what suggestions call it, where that is not its name.
        caveats: what storing something in it costs beside memory, by use; nothing where absent.
    """

    name: str
    bits: float
    uses: tuple[Use, ...]
    is_float: bool = False
    is_ternary: bool = False
    scale_bytes: int = 0
    group: int | None = None
    row_unit: int = 1
    row_unit_from: int = 0
    caveats: tuple[tuple[Use, str], ...] = ()
    title: str = ""

    @property
    def label(self) -> str:
        """What suggestions call it."""
        return self.title or self.name

    @property
    def is_trainable(self) -> bool:
        """Whether a model can be trained for it: gradients go to floating-point master weights."""
        return self.is_float or self.is_ternary

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of a format of whole bytes."""
        return int(self.bits) // 8

    def code_bytes(self, elements: int) -> int:
        """Bytes of the codes of consecutive elements, scales aside."""
        if self.bits >= 8:
            return elements * self.element_bytes
        return ceil_div(elements, int(8 / self.bits))

    def packed_row_bytes(self, inputs: int) -> int:
        """Bytes of the codes of one output's weights."""
        width = self.code_bytes(inputs)
        if inputs < self.row_unit_from:
            return width
        return self.row_unit * ceil_div(width, self.row_unit)

    def weight(self, outputs: int, inputs: int) -> tuple[int, int]:
        """Bytes of the codes, and of the scales, of a stored weight [outputs, inputs]."""
        scales = 1 if self.group is None else ceil_div(inputs, self.group)
        return outputs * self.packed_row_bytes(inputs), outputs * self.scale_bytes * scales

    def weight_bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of a stored weight [outputs, inputs] with its scales."""
        return sum(self.weight(outputs, inputs))

    def caveat(self, use: Use) -> str:
        """What storing something in it costs beside memory; empty: nothing."""
        return dict(self.caveats).get(use, "")


def ceil_div(number: int, by: int) -> int:
    """Divide and round up."""
    return -(-number // by)


_ALL: tuple[Use, ...] = ("weights", "embeddings", "kv_cache")
FORMATS = (
    StorageFormat(
        name="ternary-2bit", bits=2, uses=("weights",), is_ternary=True, scale_bytes=4,
        title="ternary", caveats=(("weights", NEEDS_TRAINING),),
    ),
    # Five codes a byte. From 320 inputs on, rows are whole 16 bytes, which a thread loads at once.
    StorageFormat(
        name="ternary-1.6bit", bits=1.6, uses=("weights",), is_ternary=True, scale_bytes=4,
        row_unit=16, row_unit_from=320, title="1.6-bit ternary",
        caveats=(("weights", NEEDS_TRAINING),),
    ),
    StorageFormat(name="bfloat16", bits=16, uses=_ALL, is_float=True),
    StorageFormat(name="float16", bits=16, uses=_ALL, is_float=True),
    StorageFormat(name="float32", bits=32, uses=("weights", "embeddings"), is_float=True),
    StorageFormat(name="fp8", bits=8, uses=("kv_cache",), is_float=True),
    StorageFormat(name="int8", bits=8, uses=_ALL, scale_bytes=4),
    StorageFormat(
        name="int4", bits=4, uses=("weights", "kv_cache"), scale_bytes=2, group=128,
        caveats=(("weights", COSTS_QUALITY),),
    ),
    StorageFormat(
        name="int2", bits=2, uses=("kv_cache",), caveats=(("kv_cache", COSTS_QUALITY),)
    ),
)  # fmt: skip
"""The formats of the bundled model. A new one is a row here, and a kernel that computes with it."""
_BY_NAME = {row.name: row for row in FORMATS}
TRAINED_PACKING = _BY_NAME["ternary-2bit"]
"""Training rounds ternary weights to it for a product, whatever inference stores."""
COMPUTE_DTYPES = ("float16", "float32")
"""Weights in one of these give activations their type; with all others it is bfloat16."""


def storage_format(name: str) -> StorageFormat:
    """The row of a name.

    Raises:
        KeyError: there is no such format.
    """
    return _BY_NAME[name]


def formats_for(use: Use) -> tuple[str, ...]:
    """Names of the formats that something may be stored in."""
    return tuple(row.name for row in FORMATS if use in row.uses)


def compute_format(weights: StorageFormat) -> StorageFormat:
    """Storage of the activations beside weights of a format."""
    return weights if weights.name in COMPUTE_DTYPES else _BY_NAME["bfloat16"]
