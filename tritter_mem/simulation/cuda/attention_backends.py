"""Which kernel `scaled_dot_product_attention` takes on a CUDA card, and the call to it.

On `meta` PyTorch takes the math path, whose score matrices no CUDA run has. The choice here follows
`select_sdp_backend` in `ATen/native/transformers/cuda/sdp_utils.cpp`, in its order:

1. cuDNN's, on cards of capability 9.0 and 10.x where cuDNN is new enough (`prefers_cudnn`):
   float16 or bfloat16, with or without a mask of two or four dimensions, widths that
   `cudnn_attention.suits` names, over one key, dropout that is a multiple of 1/16 and of more than
   one query, and not where algorithms must be deterministic;
2. flash: float16 or bfloat16, capability 8.0 or newer, no mask, equal head widths of at most 256,
   and queries as many as keys where the mask is causal;
3. memory-efficient: float16, float32, and from capability 8.0 on bfloat16, as many key heads as
   query heads (from PyTorch 2.14 on grouped ones too), widths that are multiples of 8 (half types)
   or 4 (float32); masks are fine;
4. math, and where that is not allowed cuDNN's, on any card.

`torch.nn.attention.sdpa_kernel` is respected, except for `set_priority=True`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from tritter_mem import torch_release
from tritter_mem.models.cuda_attention import cudnn_suits, prefers_cudnn
from tritter_mem.simulation.cuda.scratch.attention import sizes

Backend = Literal["cudnn", "flash", "efficient", "math"]
_HALF = (torch.float16, torch.bfloat16)
_FLASH_WIDTH = 256
_FLASH_MULTIPLE = 8
_BIAS_MULTIPLE = 8
_CUDNN_DROPOUT = 16
"""cuDNN drops multiples of one sixteenth."""


@dataclass(frozen=True, slots=True)
class Attention:
    """The arguments of one call.

    Attributes:
        query: [B, H, Q, D].
        key: [B, G, K, D].
        value: [B, G, K, E].
        mask: None, or of booleans or numbers, broadcast to [B, H, Q, K].
        dropout: probability.
        causal: whether a token sees only itself and what is before it.
        scale: of the scores; None: one over the root of D.
        grouped: whether G may be a divisor of H.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    dropout: float = 0.0
    causal: bool = False
    scale: float | None = None
    grouped: bool = False


def choose(call: Attention, capability: tuple[int, int], vendor: str = "nvidia") -> Backend:
    """The kernel that a card takes.

    Args:
        call: the arguments.
        capability: the card's compute capability.
        vendor: whose card it is.
    """
    if not _shapes_suit(call):
        return "math"
    cudnn_may = torch.backends.cuda.cudnn_sdp_enabled() and vendor == "nvidia"
    if cudnn_may and prefers_cudnn(capability, vendor) and _cudnn_suits(call, capability):
        return "cudnn"
    if torch.backends.cuda.flash_sdp_enabled() and _flash_suits(call, capability):
        return "flash"
    if torch.backends.cuda.mem_efficient_sdp_enabled() and _efficient_suits(call, capability):
        return "efficient"
    if cudnn_may and not torch.backends.cuda.math_sdp_enabled() and _cudnn_suits(call, capability):
        return "cudnn"
    return "math"


def _shapes_suit(call: Attention) -> bool:
    inputs = (call.query, call.key, call.value)
    return (
        all(tensor.dim() == 4 and tensor.numel() > 0 for tensor in inputs)
        and all(tensor.stride(-1) == 1 or tensor.shape[-1] == 1 for tensor in inputs)
        and len({tensor.dtype for tensor in inputs}) == 1
        and len({tensor.shape[0] for tensor in inputs}) == 1
    )


def _cudnn_suits(call: Attention, capability: tuple[int, int]) -> bool:
    return (
        capability >= (8, 0)
        and call.query.dtype in _HALF
        and cudnn_suits(sizes(call.query, call.key, call.value), capability)
        and call.dropout * _CUDNN_DROPOUT % 1 == 0
        and not (call.dropout and call.query.shape[2] == 1)
        and _heads_suit(call, grouped=True)
        and _mask_suits(call)
        and (
            not torch.are_deterministic_algorithms_enabled()
            or torch.is_deterministic_algorithms_warn_only_enabled()
        )
    )


def _mask_suits(call: Attention) -> bool:
    """Whether a mask is one that cuDNN adds; none is fine."""
    mask = call.mask
    if mask is None:
        return True
    full = (*call.query.shape[:3], call.key.shape[2])
    return (
        mask.dim() in (2, 4)
        and not mask.requires_grad
        and mask.stride(-1) == 1
        and all(n in (1, whole) for n, whole in zip(mask.shape, full[-mask.dim() :], strict=True))
    )


def _flash_suits(call: Attention, capability: tuple[int, int]) -> bool:
    return (
        capability >= (8, 0)
        and call.query.dtype in _HALF
        and call.mask is None
        and _widths(call) <= {min(call.query.shape[-1], _FLASH_WIDTH)}
        and not (call.causal and call.query.shape[2] != call.key.shape[2])
        and _heads_suit(call, grouped=True)
    )


def _heads_suit(call: Attention, *, grouped: bool) -> bool:
    """As many heads of each, or, where a kernel takes that, so many queries' heads a group."""
    heads, groups = call.query.shape[1], call.key.shape[1]
    together = grouped and call.grouped and heads % groups == 0
    return call.value.shape[1] == groups and (heads == groups or together)


def _efficient_suits(call: Attention, capability: tuple[int, int]) -> bool:
    dtypes = (torch.float16, torch.float32, *([torch.bfloat16] if capability >= (8, 0) else []))
    multiple = 8 if call.query.dtype in _HALF else 4
    return (
        call.query.dtype in dtypes
        and _heads_suit(call, grouped=torch_release.release() >= (2, 14))
        and call.query.shape[-1] == call.key.shape[-1]
        and all(width % multiple == 0 for width in _widths(call))
    )


def _widths(call: Attention) -> set[int]:
    return {tensor.shape[-1] for tensor in (call.query, call.key, call.value)}


def cudnn(call: Attention) -> Tensor:
    """The kernel of cuDNN. Returns [B, H, Q, E], which lies in memory as the queries do."""
    mask = None if call.mask is None else _numbers(call.mask, call.query.dtype)
    out: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
        call.query, call.key, call.value, mask, _wants_gradients(call), call.dropout, call.causal,
        scale=call.scale,
    )[0]  # fmt: skip
    return out


def _wants_gradients(call: Attention) -> bool:
    inputs = (call.query, call.key, call.value)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)


def flash(call: Attention) -> Tensor:
    """The flash kernel; widths are padded to multiples of 8 as on CUDA. Returns [B, H, Q, D]."""
    width = call.query.shape[-1]
    missing = -width % _FLASH_MULTIPLE
    inputs = [call.query, call.key, call.value]
    if missing:
        inputs = [pad(tensor, (0, missing)) for tensor in inputs]
    scale = width**-0.5 if call.scale is None else call.scale
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        *inputs, call.dropout, call.causal, scale=scale
    )[0]
    return out[..., :width] if missing else out


def efficient(call: Attention) -> Tensor:
    """The memory-efficient kernel. Returns [B, H, Q, E]."""
    inputs = (call.query, call.key, call.value)
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        *inputs, _bias(call), _wants_gradients(call), call.dropout, call.causal, scale=call.scale
    )[0]
    return out


def _bias(call: Attention) -> Tensor | None:
    """The mask as numbers, its strides padded to multiples of 8, expanded to all heads."""
    if call.mask is None:
        return None
    mask = _numbers(call.mask, call.query.dtype)
    width = mask.shape[-1]
    if mask.stride(-1) != 1 or any(stride % _BIAS_MULTIPLE for stride in mask.stride()[:-1]):
        mask = pad(mask, (0, _BIAS_MULTIPLE - width % _BIAS_MULTIPLE))[..., :width]
    return mask.expand(*call.query.shape[:3], call.key.shape[2])


def _numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: of booleans, nothing or minus infinity."""
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(-inf, dtype=dtype, device=mask.device))


def math(call: Attention) -> Tensor:
    """The path without a kernel, `_scaled_dot_product_attention_math`. Returns [B, H, Q, E].

    PyTorch's own adds the mask to the scores in place, but on `meta` apart.
    """
    given = call.query.dtype
    mask = None if call.mask is None else _numbers(call.mask, given)
    query, key, value = (_accurate(tensor) for tensor in (call.query, call.key, call.value))
    root = abs(query.shape[-1] ** -0.5 if call.scale is None else call.scale) ** 0.5
    query = query * root
    if call.causal:
        mask = _numbers(_lower_triangle(query, key), query.dtype)
    if call.grouped:
        key, value = (_for_every_head(tensor, query.shape[-3]) for tensor in (key, value))
    scores: Tensor = query @ (key.transpose(-2, -1) * root)
    if mask is not None:
        scores.add_(mask)
    scores = torch.ops.aten._safe_softmax(scores, -1)
    if call.dropout:
        scores = torch.ops.aten.native_dropout(scores, call.dropout, True)[0]
    returned = scores.to(given)  # PyTorch's own returns the scores, too
    out = (scores @ value).to(given)
    del returned
    return out


def _accurate(tensor: Tensor) -> Tensor:
    """Half types in float32, unless less was allowed."""
    less = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    return tensor.float() if tensor.dtype in _HALF and not less else tensor


def _lower_triangle(query: Tensor, key: Tensor) -> Tensor:
    size = query.shape[-2], key.shape[-2]
    return torch.ones(size, dtype=torch.bool, device=query.device).tril()


def _for_every_head(tensor: Tensor, heads: int) -> Tensor:
    return tensor.repeat_interleave(heads // tensor.shape[-3], -3)
