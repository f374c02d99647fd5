"""Which kernel `scaled_dot_product_attention` takes on a CUDA card, and the call to it.

On `meta` PyTorch takes the math path, whose score matrices no CUDA run has. The choice here follows
`select_sdp_backend` in `ATen/native/transformers/cuda/sdp_utils.cpp`, in its order:

1. flash: float16 or bfloat16, capability 8.0 or newer, no mask, equal head widths of at most 256,
   and queries as many as keys where the mask is causal;
2. memory-efficient: float16, float32, and from capability 8.0 on bfloat16, as many key heads as
   query heads, widths that are multiples of 8 (half types) or 4 (float32); masks are fine;
3. math.

Capabilities 9.0 and 10.x prefer cuDNN's kernel where cuDNN is new enough. It saves what flash
saves, so it is counted as flash; its workspace is not known. `torch.nn.attention.sdpa_kernel` is
heeded for flash and memory-efficient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Backend = Literal["flash", "efficient", "math"]
_HALF = (torch.float16, torch.bfloat16)
_FLASH_WIDTH = 256
_FLASH_MULTIPLE = 8
_BIAS_MULTIPLE = 16


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


def choose(call: Attention, capability: tuple[int, int]) -> Backend:
    """The kernel that a card takes.

    Args:
        call: the arguments.
        capability: the card's compute capability.
    """
    if not _shapes_suit(call):
        return "math"
    if torch.backends.cuda.flash_sdp_enabled() and _flash_suits(call, capability):
        return "flash"
    if torch.backends.cuda.mem_efficient_sdp_enabled() and _efficient_suits(call, capability):
        return "efficient"
    return "math"


def _shapes_suit(call: Attention) -> bool:
    inputs = (call.query, call.key, call.value)
    return (
        all(tensor.dim() == 4 and tensor.numel() > 0 for tensor in inputs)
        and all(tensor.stride(-1) == 1 or tensor.shape[-1] == 1 for tensor in inputs)
        and len({tensor.dtype for tensor in inputs}) == 1
        and len({tensor.shape[0] for tensor in inputs}) == 1
    )


def _flash_suits(call: Attention, capability: tuple[int, int]) -> bool:
    heads, groups = call.query.shape[1], call.key.shape[1]
    return (
        capability >= (8, 0)
        and call.query.dtype in _HALF
        and call.mask is None
        and _widths(call) <= {min(call.query.shape[-1], _FLASH_WIDTH)}
        and not (call.causal and call.query.shape[2] != call.key.shape[2])
        and call.value.shape[1] == groups
        and (heads == groups or (call.grouped and heads % groups == 0))
    )


def _efficient_suits(call: Attention, capability: tuple[int, int]) -> bool:
    dtypes = (torch.float16, torch.float32, *([torch.bfloat16] if capability >= (8, 0) else []))
    multiple = 8 if call.query.dtype in _HALF else 4
    heads = {tensor.shape[1] for tensor in (call.query, call.key, call.value)}
    return (
        call.query.dtype in dtypes
        and len(heads) == 1
        and call.query.shape[-1] == call.key.shape[-1]
        and all(width % multiple == 0 for width in _widths(call))
    )


def _widths(call: Attention) -> set[int]:
    return {tensor.shape[-1] for tensor in (call.query, call.key, call.value)}


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
    keeps_sums = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        *inputs, _bias(call), keeps_sums, call.dropout, call.causal, scale=call.scale
    )[0]
    return out


def _bias(call: Attention) -> Tensor | None:
    """The mask as numbers, rows padded to multiples of 16, expanded to all heads."""
    mask: Any = call.mask
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        hidden = mask.logical_not()
        mask = torch.zeros_like(mask, dtype=call.query.dtype).masked_fill_(hidden, float("-inf"))
    keys = call.key.shape[2]
    if keys % _BIAS_MULTIPLE and mask.shape[-1] == keys:
        mask = pad(mask, (0, -keys % _BIAS_MULTIPLE))[..., :keys]
    batch, heads, queries, _ = call.query.shape
    expanded: Tensor = mask.expand(batch, heads, queries, keys)
    return expanded
