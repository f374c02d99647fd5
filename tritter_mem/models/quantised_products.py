"""What products with quantised weights allocate, beside their result, in the order of the code.

| storage | source |
|---|---|
| float8 in blocks of 128 | kernels-community/finegrained-fp8: quantises as it goes |
| compressed-tensors int4 | compressed-tensors 0.20: `compressors/pack_quantized` |
| bitsandbytes 4-bit, int8 | bitsandbytes 0.50: `backends/cuda/ops.py`, `autograd/_functions.py` |

The simulation's layers (`simulation/quantised_layers.py`) run the same of PyTorch's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tritter_mem.models.formats import StorageFormat, ceil_div, storage_format
from tritter_mem.models.quantization import NF4_BLOCK, Scheme
from tritter_mem.models.shape_tensors import (
    BOOL,
    FLOAT,
    HALF,
    LONG,
    Operations,
    Parameter,
    Product,
    Tensor,
)

FUSED_ROWS = 4
"""Rows up to which bitsandbytes multiplies with 4-bit codes on every card. Up to 1,536 rows it does
on some cards for some shapes; the dequantised weight, which takes more, is counted."""
OUTLIERS = 64
"""LLM.int8() takes columns of the input that have a value of 6 or more apart: how many depends on
the input. One column in so many is counted."""


def product_of(scheme: Scheme, dtype: StorageFormat) -> Product | None:
    """How transformers multiplies with weights of a scheme; None: that is not planned.

    Args:
        scheme: of the weights.
        dtype: of activations.
    """
    make = PRODUCTS.get(scheme.product)
    return None if make is None else make(scheme, dtype)


def unpack(ops: Operations, weight: Parameter, size: int) -> None:
    """Make a weight of packed 4-bit integers one of numbers of so many bytes, in its place.

    `PackedQuantizationCompressor.decompress`: bytes are split in two, moved to int8, and scaled.
    """
    outputs, inputs = weight.shape
    words = 8 * ceil_div(inputs, 8)
    halves = [ops.new((outputs, words // 2), 1) for _ in range(2)]
    stacked = ops.new((outputs, words), 1)
    del halves
    codes = ops.new((outputs, inputs), 1)
    del stacked
    wide = ops.new((outputs, inputs), size)
    dense = ops.new((outputs, inputs), size, component="weights")
    del wide, codes
    weight.storage, weight.size = dense.storage, size


def outlier_columns(inputs: int) -> int:
    """Columns of an input that LLM.int8() is taken to multiply apart."""
    return ceil_div(inputs, OUTLIERS)


def is_fused(rows: int, inputs: int) -> bool:
    """Whether a kernel of bitsandbytes takes 4-bit codes as they are."""
    return rows <= FUSED_ROWS and inputs % NF4_BLOCK == 0


def _float8(scheme: Scheme, dtype: StorageFormat) -> Product:
    """The kernel quantises its input as it goes: it allocates the result alone."""
    del scheme, dtype

    def product(ops: Operations, x: Tensor, weight: Parameter, bias: Tensor | None) -> Tensor:
        del bias
        return ops.new((*x.shape[:-1], weight.shape[0]), x.size)

    return product


def _four_bit(scheme: Scheme, dtype: StorageFormat) -> Product:
    """`Linear4bit.forward`: in the type of products, by a kernel or with a dequantised weight."""
    nested = scheme.product.endswith("nested")
    compute = (storage_format(scheme.compute) if scheme.compute else dtype).element_bytes

    def product(ops: Operations, x: Tensor, weight: Parameter, bias: Tensor | None) -> Tensor:
        given, (outputs, inputs) = x.size, weight.shape
        x = ops.to(x, compute)
        if bias is not None and bias.size != compute:
            ops.replace(bias, compute)
        if is_fused(x.elements // inputs, inputs):
            return ops.to(_by_kernel(ops, x, outputs), given)
        return ops.to(_dequantised(ops, x, weight, bias, nested), given)

    return product


def _by_kernel(ops: Operations, x: Tensor, outputs: int) -> Tensor:
    x = ops.contiguous(x)
    return ops.new((*x.shape[:-1], outputs), x.size)


def _dequantised(
    ops: Operations, x: Tensor, weight: Parameter, bias: Tensor | None, nested: bool
) -> Tensor:
    blocks = ceil_div(weight.elements, NF4_BLOCK)
    scales = [ops.new((blocks,), FLOAT) for _ in range(2 * nested)]
    out = ops.linear(x, ops.new(weight.shape, x.size), bias)
    del scales
    return out


def _eight_bit(scheme: Scheme, dtype: StorageFormat) -> Product:
    """`MatMul8bitLt.forward`: int8 rows, and columns with outliers apart."""
    del scheme
    is_half = dtype.name == "float16"

    def product(ops: Operations, x: Tensor, weight: Parameter, bias: Tensor | None) -> Tensor:
        del bias  # is added in place
        outputs, inputs = weight.shape
        rows, count = x.elements // inputs, outlier_columns(inputs)
        flat = ops.reshape(x, (rows, inputs))
        quantised = _int8_rows(ops, flat if is_half else ops.copy(flat, HALF), count)
        apart = ops.new((rows, count), x.size)
        columns = _outlier_weights(ops, outputs, count, x.size)
        wide = ops.new((rows, outputs), FLOAT)
        halves = ops.new((rows, outputs), HALF)
        main = halves if is_half else ops.copy(halves, x.size)
        del wide, halves
        out = ops.new((rows, outputs), x.size)
        ops.product()
        del main, columns, apart, quantised
        return ops.view(out, (*x.shape[:-1], outputs))

    return product


def _int8_rows(ops: Operations, x: Tensor, count: int) -> list[Tensor]:
    """Codes, a scale a row, and the numbers of columns with outliers."""
    rows, inputs = x.shape
    scales = ops.new((rows,), FLOAT)
    codes = ops.new((rows, inputs), 1)
    magnitudes = ops.scaled(x)
    large = ops.new((rows, inputs), BOOL)
    del magnitudes
    ops.inside([BOOL])  # whether there are any
    found = ops.new((inputs,), BOOL)
    places = ops.new((count, 1), LONG)
    del found, large
    return [scales, codes, places]


def _outlier_weights(ops: Operations, outputs: int, count: int, size: int) -> Tensor:
    """Their columns of the weight, dequantised."""
    codes = ops.new((outputs, count), 1)
    scaled = ops.new((outputs, count), FLOAT)
    again = ops.new((outputs, count), FLOAT)
    del scaled, codes
    return ops.to(again, size)


PRODUCTS: Mapping[str, Callable[[Scheme, StorageFormat], Product]] = {
    "float8": _float8,
    "bitsandbytes 4-bit": _four_bit,
    "bitsandbytes 4-bit, nested": _four_bit,
    "bitsandbytes 8-bit": _eight_bit,
}
"""By `Scheme.product`. A new one is a row here."""
