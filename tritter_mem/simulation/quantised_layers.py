"""Layers with quantised weights on `meta`: what transformers puts in a model, by shape.

| storage | layer | products |
|---|---|---|
| float8 in blocks of 128 | transformers' own | a Triton kernel of the package `kernels`, which quantises the input as it goes and allocates the result alone |
| bitsandbytes NF4, FP4 | as bitsandbytes 0.50 keeps them, in place of each `nn.Linear` that transformers converts | up to 4 rows by a kernel; of more rows with the dequantised weight, as on most cards |
| compressed-tensors, packed int4 of weights alone | packed until the first call, then numbers | as not quantised |
| compressed-tensors, fp8 and int8 | codes until the first call, then numbers | of an input that is rounded, where the scheme quantises activations |
| MXFP4 of gpt-oss | transformers' own, with its weights as they are swizzled | routing and products as the Triton kernels allocate them (`mxfp4_kernels.py`) |
| bitsandbytes int8 | the same | int8 rows, int32 products, float16 results; one column in 64 has outliers |

What transformers dequantises while it loads is not quantised here either: float8 on cards without
it, MXFP4 below capability 7.5. Every other storage is refused, with the reason.
"""  # noqa: E501  (a table has its width)

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tritter_mem.config.cards import GpuCard
from tritter_mem.errors import SimulationError
from tritter_mem.models.formats import ceil_div
from tritter_mem.models.mxfp4_experts import refusal
from tritter_mem.models.quantised_products import is_fused, outlier_columns
from tritter_mem.models.quantization import (
    NF4_BLOCK,
    NF4_NESTED_BLOCK,
    SCALE_BYTES,
    Rounding,
    Scheme,
)
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.simulation.mxfp4_kernels import pack_experts
from tritter_model import labels


def quantise(model: Any, run: TransformersRun, card: GpuCard) -> None:
    """Put in the layers that transformers keeps quantised weights in.

    Args:
        model: as built from the configuration, not quantised.
        run: has how its weights are stored.
        card: decides what is kept quantised.

    Raises:
        SimulationError: they are stored in a way that does not run here.
    """
    held = run.model.quantization.held(card.compute_capability)
    if run.trains or not (held.method or held.unplanned):
        return  # of a checkpoint that is dequantised while it is loaded, too
    put_in = METHODS.get(held.method)
    if put_in is None:
        _refuse(run, held.unplanned or "whose kernels do not run on PyTorch's `meta` device")
    put_in(model, run, card)


def _refuse(run: TransformersRun, why: str) -> NoReturn:
    stored = run.model.quantization
    schemes = sorted({scheme.name for scheme in stored.all_schemes})
    raise SimulationError(
        f"{run.model.model_type}: linear layers are stored as {', '.join(schemes) or stored.method}"
        f" ({stored.method}): {why}"
    )


def _section(run: TransformersRun) -> dict[str, Any]:
    """`quantization_config`, of the whole model or of its language model."""
    found = run.config.get("quantization_config")
    return dict(found or run.config["text_config"]["quantization_config"])


def _float8(model: Any, run: TransformersRun, card: GpuCard) -> None:
    from transformers.modeling_utils import local_torch_dtype
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
    from transformers.utils.quantization_config import FineGrainedFP8Config

    section = _section(run)
    if "expert_dtype" in run.config:  # of DeepSeek-V4, whose configuration class moves it
        section.setdefault("expert_dtype", run.config["expert_dtype"])
    config = FineGrainedFP8Config(**section)
    quantizer = FineGrainedFP8HfQuantizer(config, pre_quantized=True)
    with local_torch_dtype(model.dtype):
        quantizer._process_model_before_weight_loading(model)


def _bitsandbytes(model: Any, run: TransformersRun, card: GpuCard) -> None:
    """As `replace_with_bnb_linear`: which modules stay is transformers' own rule."""
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module
    from transformers.utils.quantization_config import BitsAndBytesConfig

    read: Any = BitsAndBytesConfig
    config = read(**_without_method(_section(run)))
    ((_, scheme),) = run.model.quantization.schemes
    kept = HfQuantizer.get_modules_to_not_convert(
        model, config.llm_int8_skip_modules, model._keep_in_fp32_modules
    )
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and should_convert_module(name, kept):
            kind = FourBitLinear if config.load_in_4bit else EightBitLinear
            model.set_submodule(name, kind(module, scheme))


def _without_method(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "quant_method"}


def _compressed_tensors(model: Any, run: TransformersRun, card: GpuCard) -> None:
    """Packed integers, which all become numbers before the first call."""
    held = run.model.quantization.held((0, 0))
    packed: list[UnpackedLinear] = []
    for name, module in list(model.named_modules()):
        scheme = held.scheme_of(name.replace("language_model.", ""))
        if scheme is not None and isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            _refuse(run, f"in layers of the class {type(module).__name__}, which does not run here")
        if type(module) is nn.Linear and scheme is not None:
            kind = PackedLinear if scheme.packs else CodedLinear
            packed.append(kind(module, scheme))
            model.set_submodule(name, packed[-1])

    def unpack(*call: Any) -> None:
        handle.remove()
        for layer in packed:
            layer.unpack()

    handle = model.register_forward_pre_hook(unpack)


def _mxfp4(model: Any, run: TransformersRun, card: GpuCard) -> None:
    """Experts of gpt-oss alone."""
    from transformers.quantizers.base import HfQuantizer

    if found := refusal(run.model.language_type, run.dtype, card):
        _refuse(run, found)
    listed = _section(run).get("modules_to_not_convert")
    kept = HfQuantizer.get_modules_to_not_convert(model, listed, model._keep_in_fp32_modules)
    pack_experts(model, kept, card)


METHODS: Mapping[str, Callable[[Any, TransformersRun, GpuCard], None]] = {
    "fp8": _float8,
    "compressed-tensors": _compressed_tensors,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
}
"""By `quant_method`. A new one is a row here."""


class _QuantisedLinear(nn.Module):
    """Codes, scales and the bias of a linear layer.

    Args:
        layer: that it stands for.
        scheme: how its weight is stored.
    """

    bias: nn.Parameter | None
    scales_1: Tensor
    scales_2: Tensor
    scales_3: Tensor

    def __init__(self, layer: nn.Linear, scheme: Scheme) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.out_features, layer.in_features
        self.bias = layer.bias
        for number, (count, dtype) in enumerate(self.stored(scheme)):
            tensor = torch.empty(count, dtype=dtype, device=layer.weight.device)
            if number:
                self.register_buffer(f"scales_{number}", tensor)
            else:
                self.weight = nn.Parameter(tensor, requires_grad=False)

    def stored(self, scheme: Scheme) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each tensor of the weight."""
        raise NotImplementedError

    def _bias_as(self, x: Tensor) -> Tensor | None:
        if self.bias is not None and self.bias.dtype != x.dtype:
            self.bias.data = self.bias.data.to(x.dtype)
        return self.bias


class FourBitLinear(_QuantisedLinear):
    """`bitsandbytes.nn.Linear4bit`."""

    def __init__(self, layer: nn.Linear, scheme: Scheme) -> None:
        super().__init__(layer, scheme)
        self._compute = getattr(torch, scheme.compute) if scheme.compute else layer.weight.dtype

    def stored(self, scheme: Scheme) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Two codes a byte, scales of blocks, and values of codes; nested scales with theirs."""
        elements = self.out_features * self.in_features
        blocks = ceil_div(elements, NF4_BLOCK)
        codes, values = ((elements + 1) // 2, 1), (16,)
        self._nested = scheme.product.endswith("nested")
        if not self._nested:
            return [(codes, torch.uint8), ((blocks,), torch.float32), (values, torch.float32)]
        return [
            (codes, torch.uint8),
            ((blocks,), torch.uint8),
            ((ceil_div(blocks, NF4_NESTED_BLOCK),), torch.float32),
            ((), torch.float32),
            (values, torch.float32),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Rows [..., K] in, [..., N] out, in the type of the rows."""
        given = x.dtype
        x = x.to(self._compute)
        bias = self._bias_as(x)
        if is_fused(x.numel() // self.in_features, self.in_features):
            return self._by_kernel(x).to(given)
        return self._dequantised(x, bias).to(given)

    def _by_kernel(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        return x.new_empty((*x.shape[:-1], self.out_features))

    def _dequantised(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._nested:
            scales = self.scales_1.new_empty(self.scales_1.shape, dtype=torch.float32)
            shifted = scales + self.scales_3
        weight = x.new_empty((self.out_features, self.in_features))
        result = linear(x, weight, bias)
        if self._nested:
            del shifted, scales
        return result


class UnpackedLinear(_QuantisedLinear):
    """A linear layer that compressed-tensors holds as codes until the first call."""

    weight: nn.Parameter

    def __init__(self, layer: nn.Linear, scheme: Scheme) -> None:
        self._dtype, self._rounding = layer.weight.dtype, scheme.rounding
        if found := scheme.refusal(layer.out_features, layer.in_features):
            raise SimulationError(f"compressed-tensors unpacks whole groups alone: {found}")
        super().__init__(layer, scheme)

    def unpack(self) -> None:
        """Put numbers in place of the codes: `decompress`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Rows [..., K] in, [..., N] out."""
        if self._rounding is not None:
            x = _rounded(x, self._rounding, getattr(self, "scales_2", None))
        return linear(x, self.weight, self.bias)


class CodedLinear(UnpackedLinear):
    """8 bits a weight: `NaiveQuantizationCompressor`."""

    def stored(self, scheme: Scheme) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Codes, their scales, and a scale of the input where it is stored."""
        _, scales, *others = scheme.tensors(self.out_features, self.in_features)
        codes = torch.float8_e4m3fn if "fp8" in scheme.name else torch.int8
        self._rows, self._columns = scheme.rows, scheme.group
        size = self._dtype.itemsize
        return [
            ((self.out_features, self.in_features), codes),
            (self._scales_shape(scales // SCALE_BYTES), self._dtype),
            *(((size // size,), self._dtype) for _ in others),
        ]

    def _scales_shape(self, count: int) -> tuple[int, ...]:
        if self._columns:
            return self.out_features // self._rows, self.in_features // self._columns
        return (count, 1) if count > 1 else (1,)

    def unpack(self) -> None:
        """`_dequantize`, of blocks where there are any."""
        codes, scales = self.weight.data, self.scales_1
        if self._columns:
            rows, columns = scales.shape
            blocks = codes.reshape(rows, self._rows, columns, self._columns).transpose(1, 2)
            wide = blocks.to(self._dtype)
            scales = scales.unsqueeze(-1).unsqueeze(-1)
        else:
            wide = codes.to(self._dtype)
        with labels.label(labels.WEIGHTS):
            wide = wide * scales
        if self._columns:
            wide = wide.transpose(1, 2).reshape(self.out_features, self.in_features)
        del codes
        self.weight = nn.Parameter(wide, requires_grad=False)


def _rounded(x: Tensor, rounding: Rounding, stored: Tensor | None) -> Tensor:
    """`forward_quantize` of compressed-tensors, in the type of x."""
    if stored is not None:
        return _to_codes_and_back(x, stored, None, rounding)
    parts = x.unflatten(-1, (-1, rounding.group)) if rounding.group else x
    scales, points = _found_scales(parts, rounding)
    if rounding.group:
        whole = _to_codes_and_back(parts, scales.unsqueeze(-1), points.unsqueeze(-1), rounding)
        return whole.flatten(start_dim=-2)
    return _to_codes_and_back(x, scales, points, rounding)


def _found_scales(x: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """`compute_dynamic_scales_and_zp`."""
    if rounding.group:
        least, most = torch.amin(x, dim=-1), torch.amax(x, dim=-1)
    elif x.dim() > 2:
        least, most = torch.amin(x, dim=-1, keepdim=True), torch.amax(x, dim=-1, keepdim=True)
    else:
        least, most = torch.aminmax(x)
    return _scales_between(least, most, rounding)


def _scales_between(least: Tensor, most: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """`calculate_qparams`."""
    least = torch.min(least, torch.zeros_like(least))
    most = torch.max(most, torch.zeros_like(most))
    span = most.new_empty((), dtype=torch.float32)
    size = torch.max(torch.abs(least), torch.abs(most))
    scales = size / (span.to(size.dtype) / 2)
    points = torch.zeros(scales.shape, device=scales.device, dtype=scales.dtype)
    smallest = torch.finfo(scales.dtype).eps
    scales = torch.where(
        scales == 0, torch.tensor(smallest, dtype=scales.dtype, device=scales.device), scales
    )
    if rounding.floats:
        points = torch.clamp(points, -448.0, 448.0).to(torch.float8_e4m3fn)
    else:
        points = torch.round(torch.clamp(points, -128, 127)).to(torch.int8)
    return scales, points


def _to_codes_and_back(
    x: Tensor, scales: Tensor, points: Tensor | None, rounding: Rounding
) -> Tensor:
    """`_quantize_dequantize`."""
    scaled = x / scales
    if points is not None:
        scaled += points.to(x.dtype)
    whole = _whole(scaled, rounding)
    numbers = whole
    if points is not None:
        numbers = whole - points.to(scales.dtype)
    return numbers * scales


def _whole(x: Tensor, rounding: Rounding) -> Tensor:
    """`round_to_quantized_type_args`."""
    given = x.dtype
    x = torch.clamp(x, -1.0, 1.0)
    rounded = x.to(torch.float8_e4m3fn) if rounding.floats else torch.round(x)
    return rounded.to(given)


class PackedLinear(UnpackedLinear):
    """Eight codes a word: `PackedQuantizationCompressor`."""

    def stored(self, scheme: Scheme) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Eight codes a word, scales of groups, packed zeros where there are any, and the shape."""
        _, scales, *_, shape = scheme.tensors(self.out_features, self.in_features)
        groups = scales // self._dtype.itemsize // self.out_features
        self._has_zeros = scheme.zeros
        zeros = ((ceil_div(self.out_features, 8), groups), torch.int32)
        return [
            ((self.out_features, ceil_div(self.in_features, 8)), torch.int32),
            ((self.out_features, groups), self._dtype),
            *([zeros] if scheme.zeros else []),
            ((shape // 8,), torch.int64),
        ]

    def unpack(self) -> None:
        """`decompress`, and the result in place of the codes."""
        zeros = self._zeros() if self._has_zeros else None
        codes = _split(self.weight.data, self.in_features)
        groups = self.scales_1.shape[1]
        wide = codes.unflatten(-1, (groups, -1)).to(self._dtype)
        if zeros is not None:
            wide = wide - zeros.unsqueeze(-1).to(self._dtype)
        with labels.label(labels.WEIGHTS):
            wide = wide * self.scales_1.unsqueeze(-1)
        del codes
        self.weight = nn.Parameter(wide.flatten(start_dim=-2), requires_grad=False)
        if zeros is not None:
            self.scales_2 = zeros

    def _zeros(self) -> Tensor:
        with labels.label(labels.WEIGHTS):
            return _split(self.scales_2.transpose(0, 1), self.out_features).transpose(0, 1)


def _split(words: Tensor, columns: int) -> Tensor:
    """`unpack_from_int32` of 4-bit codes: a row of words has so many."""
    nibbles = words.contiguous().view(torch.uint8)
    output = torch.stack((nibbles & 0xF, nibbles >> 4), dim=-1)
    return output.view(torch.int8).view(words.shape[0], -1)[:, :columns] - 8


class EightBitLinear(_QuantisedLinear):
    """`bitsandbytes.nn.Linear8bitLt` with its threshold for outliers."""

    def stored(self, scheme: Scheme) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Codes, and a scale an output."""
        del scheme
        shape = (self.out_features, self.in_features)
        return [(shape, torch.int8), ((self.out_features,), torch.float32)]

    def forward(self, x: Tensor) -> Tensor:
        """Rows [..., K] in, [..., N] out, in the type of the rows."""
        bias = self._bias_as(x)
        rows = x.reshape(-1, x.shape[-1])
        codes, scales, places = self._int8_rows(rows.to(torch.float16))
        apart = rows[:, places].contiguous()
        weight = self._dequantised(self.weight[:, places].contiguous()).to(x.dtype).t()
        result = self._scaled(codes, scales, bias, x.dtype)
        result = result.addmm(apart, weight)
        del weight, codes, scales, places, apart
        return result.reshape((*x.shape[:-1], self.out_features))

    @staticmethod
    def _int8_rows(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [T, K], scales [T], and the columns with outliers."""
        scales = rows.new_empty(rows.shape[:1], dtype=torch.float32)
        codes = rows.new_empty(rows.shape, dtype=torch.int8)
        outliers = rows.abs() >= 6.0
        outliers.any()
        found = outliers.any(dim=0)
        count = outlier_columns(rows.shape[1])
        places = rows.new_empty((count, 1), dtype=torch.long).view(-1)
        del found
        if rows.shape[0] > 1:
            codes[:, places] = 0
        del outliers
        return codes, scales, places

    def _dequantised(self, codes: Tensor) -> Tensor:
        return codes * self.scales_1.view(-1, 1) * (1 / 127)

    def _scaled(
        self, codes: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        shape = codes.shape[0], self.out_features
        wide = codes.new_empty(shape, dtype=torch.int32)
        halves = torch.empty_like(wide, dtype=torch.float16)
        if bias is not None and bias.dtype != torch.float16:
            halves.add_(bias)
        result = halves.to(dtype)
        del halves, wide
        return result
