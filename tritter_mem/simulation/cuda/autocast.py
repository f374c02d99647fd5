"""What autocast does to an operator's arguments on CUDA: PyTorch's lists, policies and cast cache.

Source: `ATen/autocast_mode.h` (lists, policies) and `autocast_mode.cpp` (cache) of PyTorch. A test
holds the lists against what the installed PyTorch registers for CUDA, and the casts against what it
does on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""An operator's overload, its positional and its named arguments."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LOWER_PRECISION = _names("""
    _convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input convolution cudnn_convolution
    cudnn_convolution_transpose prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear
    addbmm baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell _thnn_fused_gru_cell
    lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell _scaled_dot_product_flash_attention
    scaled_dot_product_attention
""")
FLOAT32 = _names("""
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan
    pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm
    group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss
    cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
    huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss
    triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm
    logsumexp upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d
    _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d
    upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d
    _upsample_bicubic2d_aa
""")
FLOAT32_RESULT = _names("""
    prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm
    linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList
""")
FLOAT32_OVERLOAD = {"norm.Scalar": "ScalarOpt_dtype", "norm.ScalarOpt_dim": "ScalarOpt_dim_dtype"}
WIDEST = _names("""
    addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add
""")
REFUSED = ("binary_cross_entropy",)


class CastCache:
    """Casts of weights, kept until the outermost autocast region ends.

    PyTorch keeps the casts of float32 leaves that require a gradient; none in inference mode.
    """

    def __init__(self) -> None:
        self._casts = WeakTensorKeyDictionary()

    def clear(self) -> None:
        """Let all casts go."""
        self._casts.clear()

    def cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor in another type, from the cache where it is kept there."""
        if not _kept(tensor, dtype):
            return tensor.to(dtype)
        found: Tensor | None = self._casts.get(tensor)
        if found is None:
            found = self._casts[tensor] = tensor.to(dtype)
        return found


def _kept(tensor: Tensor, dtype: torch.dtype) -> bool:
    return (
        dtype == fast_dtype()
        and tensor.dtype == torch.float32
        and tensor.requires_grad
        and tensor.is_leaf
        and not tensor._is_view()
        and torch.is_autocast_cache_enabled()
        and not torch.is_inference_mode_enabled()
    )


def fast_dtype() -> torch.dtype:
    """The type that autocast on CUDA computes in now."""
    return torch.get_autocast_dtype("cuda")


def policies(
    cache: CastCache, eligible: Callable[[Tensor], bool]
) -> dict[str, Callable[..., Call]]:
    """For each operator that autocast changes, what it makes of a call.

    Args:
        cache: of weights' casts.
        eligible: tells whether a tensor is one that autocast may cast.

    Returns:
        Operator name, such as `mm` or `sum.dim_IntList`, to a function of the overload, its
        arguments and its named arguments that gives the call to make instead.
    """
    caster = _Caster(cache, eligible)
    return (
        dict.fromkeys(LOWER_PRECISION, caster.to_fast)
        | dict.fromkeys(FLOAT32, caster.to_float32)
        | dict.fromkeys(FLOAT32_RESULT, caster.with_float32_result)
        | dict.fromkeys(FLOAT32_OVERLOAD, caster.to_float32_overload)
        | dict.fromkeys(WIDEST, caster.to_widest)
        | dict.fromkeys(REFUSED, _refuse)
    )


class _Caster:
    def __init__(self, cache: CastCache, eligible: Callable[[Tensor], bool]) -> None:
        self._cache = cache
        self._eligible = eligible

    def to_fast(self, op: Any, args: Any, kwargs: Any) -> Call:
        return self._all(op, args, kwargs, fast_dtype())

    def to_float32(self, op: Any, args: Any, kwargs: Any) -> Call:
        return self._all(op, args, kwargs, torch.float32)

    def to_widest(self, op: Any, args: Any, kwargs: Any) -> Call:
        found = [t for t in _tensors((args, kwargs)) if self._eligible(t)]
        wide = any(tensor.dtype == torch.float32 for tensor in found)
        dtype = torch.float32 if wide else fast_dtype()
        return self._all(op, args, kwargs, dtype)

    def with_float32_result(self, op: Any, args: Any, kwargs: Any) -> Call:
        """A result's type that the caller chose stands."""
        at = [argument.name for argument in op._schema.arguments].index("dtype")
        chosen = args[at] if at < len(args) else kwargs.get("dtype")
        if chosen is not None or not self._eligible(args[0]):
            return op, args, kwargs
        return op, args[:at], {**kwargs, "dtype": torch.float32}

    def to_float32_overload(self, op: Any, args: Any, kwargs: Any) -> Call:
        """`norm` takes the result's type in an overload of its own."""
        if not self._eligible(args[0]):
            return op, args, kwargs
        name = str(op).removeprefix("aten.")
        wider = getattr(torch.ops.aten.norm, FLOAT32_OVERLOAD[name])
        named = [argument.name for argument in op._schema.arguments]
        defaults = {a.name: a.default_value for a in op._schema.arguments if a.has_default_value()}
        given = {**defaults, **dict(zip(named, args, strict=False)), **kwargs}
        return wider, (), {**given, "dtype": torch.float32}

    def _all(self, op: Any, args: Any, kwargs: Any, dtype: torch.dtype) -> Call:
        """Cast the last argument first, as PyTorch's compiler has it."""
        named = {name: self._cast(value, dtype) for name, value in reversed(kwargs.items())}
        cast = [self._cast(value, dtype) for value in reversed(args)]
        return op, tuple(reversed(cast)), named

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            if value.dtype != dtype and self._eligible(value):
                return self._cache.cast(value, dtype)
        elif isinstance(value, list | tuple):
            return type(value)(self._cast(item, dtype) for item in value)
        return value


def _refuse(op: Any, args: Any, kwargs: Any) -> Call:
    raise RuntimeError(
        "binary_cross_entropy and BCELoss are unsafe to autocast: use "
        "binary_cross_entropy_with_logits or BCEWithLogitsLoss"
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
