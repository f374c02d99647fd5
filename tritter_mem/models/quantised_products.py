"""What products with quantised weights allocate, beside their result, in the order of the code.

| storage | source |
|---|---|
| float8 in blocks of 128 | kernels-community/finegrained-fp8: quantises as it goes |
| compressed-tensors int4 | compressed-tensors 0.20: `compressors/pack_quantized` |
| compressed-tensors fp8, int8 | `compressors/naive_quantized`, `quantization/lifecycle/forward` |
| bitsandbytes 4-bit, int8 | bitsandbytes 0.50: `backends/cuda/ops.py`, `autograd/_functions.py` |
| MXFP4 of gpt-oss | kernels-community/gpt-oss-triton-kernels: `mxfp4_experts.py` |

The simulation's layers (`simulation/quantised_layers.py`) run the same of PyTorch's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tritter_mem.models import mxfp4_experts
from tritter_mem.models.cuda_reductions import Chip
from tritter_mem.models.formats import StorageFormat, ceil_div, storage_format
from tritter_mem.models.quantization import EXPERTS_MXFP4, NF4_BLOCK, UNPACKED, Rounding, Scheme
from tritter_mem.models.shape_tensors import (
    BOOL,
    FLOAT,
    HALF,
    LONG,
    NotPlannedError,
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
    """How transformers multiplies with weights of a scheme; None: as with numbers, or not planned.

    Args:
        scheme: of the weights.
        dtype: of activations.
    """
    if scheme.product == UNPACKED:
        return None if scheme.rounding is None else _with_rounded(scheme.rounding)
    make = PRODUCTS.get(scheme.product)
    return None if make is None else make(scheme, dtype)


def held_bytes(scheme: Scheme, card: Chip, outputs: int, inputs: int) -> tuple[int, ...]:
    """Bytes of each tensor of a weight [outputs, inputs] on a card, its codes first.

    Raises:
        NotPlannedError: it cannot be held there.
    """
    if scheme.product == EXPERTS_MXFP4:
        return mxfp4_experts.held_bytes(card, outputs, inputs)
    return scheme.tensors(outputs, inputs)


def bias_bytes(scheme: Scheme | None, element_bytes: int) -> int:
    """Bytes of an element of the bias beside a weight of a scheme, in activations of so many."""
    return FLOAT if scheme is not None and scheme.product == EXPERTS_MXFP4 else element_bytes


def is_mxfp4(weight: Parameter) -> bool:
    """Whether the Triton kernels for MXFP4 multiply with a weight of experts."""
    return weight.product is _of_experts


def unpack(
    ops: Operations, weight: Parameter, size: int, scheme: Scheme, zeros: list[Tensor]
) -> None:
    """Make a weight of codes one of numbers of so many bytes, in its place.

    `PackedQuantizationCompressor.decompress`: bytes are split in two, moved to int8, and scaled.
    `NaiveQuantizationCompressor.decompress`: codes are scaled.

    Args:
        ops: makes tensors.
        weight: it is changed.
        size: bytes of an element.
        scheme: of the weight.
        zeros: packed zeros of groups, which are unpacked too; empty: there are none.
    """
    outputs, inputs = weight.shape
    groups = inputs // scheme.group if scheme.group else 1
    points = [_split(ops, groups, outputs, moves=groups > 1) for _ in zeros]
    codes = _split(ops, outputs, inputs) if scheme.packs else None
    wide = ops.new((outputs, inputs), size)
    for point in points:
        near = ops.new(point.shape, size)
        moved = ops.new((outputs, inputs), size)
        wide = moved
        del near, moved
    dense = ops.new((outputs, inputs), size, component="weights")
    del wide, codes
    weight.storage, weight.size = dense.storage, size
    for point in points:
        ops.account(point, "weights")
    zeros[:] = points


def _split(ops: Operations, rows: int, columns: int, *, moves: bool = False) -> Tensor:
    """4-bit codes [rows, columns] of words, as int8: `unpack_from_int32`.

    Args:
        ops: makes tensors.
        rows: of words.
        columns: codes of a row.
        moves: whether words of a row lie apart, so that they are brought together first.
    """
    words = 8 * ceil_div(columns, 8)
    together = ops.new((rows, words // 2), 1) if moves else None
    halves = [ops.new((rows, words // 2), 1) for _ in range(2)]
    stacked = ops.new((rows, words), 1)
    del halves
    codes = ops.new((rows, columns), 1)
    del stacked, together
    return codes


def _with_rounded(rounding: Rounding) -> Product:
    """`quantized_forward` of compressed-tensors."""

    def product(ops: Operations, x: Tensor, weight: Parameter, bias: Tensor | None) -> Tensor:
        numbers = Tensor(weight.shape, weight.strides, weight.size, weight.storage)
        rounded = _rounded(ops, x, rounding)
        return ops.linear(rounded, numbers, bias)

    return product


def _rounded(ops: Operations, x: Tensor, rounding: Rounding) -> Tensor:
    """`fake_quantize`: to codes and back, in the type of x [..., K]."""
    found = _found_scales(ops, x, rounding) if rounding.dynamic else []
    small = found[0].elements * x.size if found else 0
    scaled = ops.scaled(x)
    ops.inside([small])
    limited = ops.scaled(scaled)
    codes = ops.new(x.shape, 1) if rounding.floats else None
    whole = ops.scaled(limited)
    del limited, codes
    moved = whole
    if found:
        shift = ops.new(found[0].shape, x.size)
        moved = ops.scaled(whole)
        del shift
    out = ops.scaled(moved)
    del scaled, whole, moved
    return out


def _found_scales(ops: Operations, x: Tensor, rounding: Rounding) -> list[Tensor]:
    """`compute_dynamic_scales_and_zp`: scales in the type of x, and zero points of a byte."""
    dims = [-1]
    if rounding.group:
        x = ops.view(x, (*x.shape[:-1], x.shape[-1] // rounding.group, rounding.group))
    elif (
        len(x.shape) == 2
    ):  # the dimensions of sequences and tokens are not reduced; it has no other
        dims = [0, 1]
    extremes = [ops.extreme(x, dims) for _ in range(2)]
    shape, size = extremes[0].shape, x.size
    with_zero = []
    for _ in extremes:
        zeros = ops.new(shape, size)
        with_zero.append(ops.new(shape, size))
        del zeros
    span = ops.new((), FLOAT)
    sizes = [ops.new(shape, size) for _ in range(2)]
    most = ops.new(shape, size)
    del sizes
    numbers = [ops.new((), size) for _ in range(2)]
    numbers.pop(0)
    scales = ops.new(shape, size)
    del numbers
    zeros = ops.new(shape, size)
    empty, least = ops.new(shape, BOOL), ops.new((), size)
    chosen = ops.new(shape, size)
    del empty, least, scales
    limited = ops.new(shape, size)
    if not rounding.floats:
        limited = ops.new(shape, size)
    points = ops.new(shape, 1)
    del limited, zeros, with_zero, span, most, extremes
    return [chosen, points]


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
    wide = ops.new(weight.shape, x.size)
    out = ops.linear(x, wide, bias)
    while scales:
        scales.pop()
    del wide
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
        given = flat if is_half else ops.copy(flat, HALF)
        codes, scales, places = _int8_rows(ops, given, count)
        del given
        apart = ops.new((rows, count), x.size)
        columns = _outlier_weights(ops, outputs, count, x.size)
        wide = ops.new((rows, outputs), FLOAT)
        halves = ops.new((rows, outputs), HALF)
        main = halves if is_half else ops.copy(halves, x.size)
        del halves, wide
        out = ops.new((rows, outputs), x.size)
        ops.product()
        del main, columns, codes, scales, places, apart
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
    ops.extreme(large, [0, 1])  # whether there are any
    found = ops.extreme(large, [0])
    places = ops.new((count, 1), LONG)
    del found
    if rows > 1:
        ops.inside([1])  # the zero that they become
    return [codes, scales, places]


def _outlier_weights(ops: Operations, outputs: int, count: int, size: int) -> Tensor:
    """Their columns of the weight, dequantised."""
    codes = ops.new((outputs, count), 1)
    scaled = ops.new((outputs, count), FLOAT)
    again = ops.new((outputs, count), FLOAT)
    del scaled, codes
    return ops.to(again, size)


def _mxfp4(scheme: Scheme, dtype: StorageFormat) -> Product:
    """Routing and both products are one: `mxfp4_experts.run_experts`."""
    del scheme, dtype
    return _of_experts


def _of_experts(ops: Operations, x: Tensor, weight: Parameter, bias: Tensor | None) -> Tensor:
    raise NotPlannedError("a linear layer in MXFP4 is not planned")


PRODUCTS: Mapping[str, Callable[[Scheme, StorageFormat], Product]] = {
    "float8": _float8,
    "bitsandbytes 4-bit": _four_bit,
    "bitsandbytes 4-bit, nested": _four_bit,
    "bitsandbytes 8-bit": _eight_bit,
    EXPERTS_MXFP4: _mxfp4,
}
"""By `Scheme.product`. A new one is a row here."""
