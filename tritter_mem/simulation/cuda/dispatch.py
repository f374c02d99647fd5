"""Code that runs on `meta` makes the choices that it makes on a CUDA card.

PyTorch chooses by device: autocast leaves meta tensors alone, attention and dropout take other
paths, optimizers other defaults. Inside `as_on_cuda` they do for meta tensors what they do for CUDA
tensors.

Autocast, attention and dropout are settled where PyTorch settles autocast: in the dispatcher, above
autograd. A Python function mode would miss what operators, `nn.MultiheadAttention` and
recomputation call inside. The spare dispatch key `AutocastPrivateUse1` serves, which no device here
has.

| what | on `meta` | as on CUDA |
|---|---|---|
| `torch.autocast("cuda")`, or of `meta` | nothing is cast | `autocast.py` |
| `scaled_dot_product_attention` | math | `attention_backends.py` |
| cuDNN's attention | sums of rows always | where gradients need them |
| `linear` of what is not contiguous | the bias added apart | in place |
| `dropout` in training | a mask of the input's type | `native_dropout`, a mask of booleans |
| `softmax`, `log_softmax` of float16 to float32 | a float32 copy | one operator |
| `rms_norm` | in parts | one operator, which saves its input and a sum per row |
| `one_hot` | compared with every class | ones put into zeros |
| `grouped_mm` | bfloat16 alone | float32 and float16 too, rows padded to 16 bytes |
| optimizers, `clip_grad_norm_` | one tensor at a time | all tensors at once (`foreach`) |
| `checkpoint` | forgets autocast | remembers it |
| `.cuda()`, `device="cuda"`, `pin_memory()` | fails | on `meta`; nothing |
| `torch.cuda.synchronize()` | fails | nothing |
| `GradScaler` | fails at `.item()` | passes through; its scalars do not count |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch._meta_registrations import meta__scaled_dot_product_cudnn_attention
from torch.overrides import TorchFunctionMode

from tritter_mem.simulation.cuda import attention_backends
from tritter_mem.simulation.cuda.autocast import CastCache, policies


class FusedRmsNorm(torch.autograd.Function):
    """`_fused_rms_norm` of CUDA: saves its input, its weight and one number a row.

    Shapes only: it is for tensors on `meta`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], weight: Tensor | None) -> Tensor:
        """Normalise over the last `shape` dimensions of x; returns the shape of x."""
        rows = x.shape[: x.dim() - len(shape)]
        dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        rstd = x.new_empty((*rows, *(1 for _ in shape)), dtype=dtype)
        ctx.save_for_backward(x, rstd, weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """Gradients of x and of the weight, in their shapes."""
        x, _, weight = ctx.saved_tensors
        return torch.empty_like(x), None, None if weight is None else torch.empty_like(weight)


_KEY = torch._C.DispatchKey.AutocastPrivateUse1  # type: ignore[attr-defined]
_KEYS = torch._C.DispatchKeySet(_KEY)
_BELOW = torch._C._dispatch_keyset_full_after(_KEY)
_ON_CARD = ("cuda", "meta")


@contextmanager
def as_on_cuda(capability: tuple[int, int], vendor: str = "nvidia") -> Iterator[None]:
    """Treat meta tensors as CUDA tensors of a card, on this thread.

    Args:
        capability: the card's compute capability.
        vendor: whose card it is.
    """
    cache = CastCache()
    with ExitStack() as stack:
        stack.enter_context(_defaults_kept())
        stack.enter_context(_kernels(cache, _routes(capability, vendor)))
        stack.enter_context(_key_included())
        for place, name, value in _replacements(cache):
            stack.enter_context(patch.object(place, name, value))
        stack.enter_context(_CudaIsMeta())
        yield


@contextmanager
def _defaults_kept() -> Iterator[None]:
    """What code sets for the process, `torch.set_default_device`, ends with its run."""
    device, dtype = _default_device(), torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if _default_device() != device:
            torch.set_default_device(device)


def _default_device() -> torch.device | None:
    """What `torch.set_default_device` set on this thread; None where nothing is set.

    `torch.get_default_device` says "cpu" for nothing, which is not the same: with "cpu" set,
    `torch.as_tensor` copies every tensor there.
    """
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def _eligible(tensor: Tensor) -> bool:
    """Autocast casts floating-point tensors of the card, float64 left out."""
    return tensor.is_meta and tensor.is_floating_point() and tensor.dtype != torch.float64


@contextmanager
def _kernels(cache: CastCache, routes: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Kernels of the spare key, for the operators whose path depends on the device."""
    casts = policies(cache, _eligible)
    aten = torch.library.Library("aten", "IMPL", _KEY.name)
    rest = torch.library.Library("_", "IMPL", _KEY.name)
    shapes = torch.library.Library("aten", "IMPL", "Meta")
    try:
        rest.fallback(torch.library.fallthrough_kernel)
        shapes.impl("_grouped_mm", _grouped_mm, allow_override=True)
        shapes.impl("_scaled_dot_product_cudnn_attention", _cudnn_attention, allow_override=True)
        for name in {**casts, **routes}:
            kernel = _kernel(_overload(name), casts.get(name), routes.get(name))
            aten.impl(name, kernel, with_keyset=True)
        yield
    finally:
        aten._destroy()
        rest._destroy()
        shapes._destroy()


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _kernel(op: Any, cast: Any, route: Any) -> Callable[..., Any]:
    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        casts = cast is not None and torch.is_autocast_enabled("cuda")
        routes = route is not None and args[0].is_meta
        if not casts and not routes:
            return op.redispatch(keys & _BELOW, *args, **kwargs)
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            called, args, kwargs = cast(op, args, kwargs) if casts else (op, args, kwargs)
            result = route(*args, **kwargs) if routes else NotImplemented
            return called(*args, **kwargs) if result is NotImplemented else result

    return kernel


@contextmanager
def _key_included() -> Iterator[None]:
    """Every operator on this thread goes by the spare key's kernels first."""
    torch._C._dispatch_tls_set_dispatch_key_excluded(_KEY, False)
    torch._C._dispatch_tls_set_dispatch_key_included(_KEY, True)
    try:
        yield
    finally:
        torch._C._dispatch_tls_set_dispatch_key_included(_KEY, False)
        torch._C._dispatch_tls_set_dispatch_key_excluded(_KEY, True)


def _routes(capability: tuple[int, int], vendor: str) -> dict[str, Callable[..., Any]]:
    """Operators with a path of their own on CUDA: the result, or NotImplemented for the usual."""

    def attend(  # noqa: PLR0913  (the operator's schema)
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        call = attention_backends.Attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        )
        match attention_backends.choose(call, capability, vendor):
            case "cudnn":
                return attention_backends.cudnn(call)
            case "flash":
                return attention_backends.flash(call)
            case "efficient":
                return attention_backends.efficient(call)
        return attention_backends.math(call)

    return {
        "linear": _linear,
        "scaled_dot_product_attention": attend,
        "dropout": _dropout,
        "rms_norm": _rms_norm,
        "one_hot": _one_hot,
        "softmax.int": _widening(torch.ops.aten._softmax.default),
        "log_softmax.int": _widening(torch.ops.aten._log_softmax.default),
    }


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:  # noqa: A002
    """The bias of an input that is not contiguous is added in place, on `meta` apart.

    Raises:
        RuntimeError: input and weight are of two types, which `meta` takes.
    """
    if input.dtype != weight.dtype:
        raise RuntimeError(
            f"expected mat1 and mat2 to have the same dtype, but got: {input.dtype} != "
            f"{weight.dtype}"
        )
    if bias is None or input.dim() == 2 or input.is_contiguous():
        return NotImplemented
    return torch.matmul(input, weight.t()).add_(bias)


def _dropout(input: Tensor, p: float, train: bool) -> Any:  # noqa: A002  (the schema's name)
    if not train or not 0 < p < 1 or input.numel() == 0:
        return NotImplemented
    return torch.ops.aten.native_dropout(input, p, train)[0]


def _one_hot(index: Tensor, num_classes: int = -1) -> Any:
    if num_classes < 0:
        return NotImplemented
    ones = torch.zeros(*index.shape, num_classes, dtype=torch.int64, device=index.device)
    return ones.scatter_(-1, index.unsqueeze(-1), 1)


def _grouped_mm(
    left: Tensor,
    right: Tensor,
    offsets: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The result of `_grouped_mm_cuda` (`ATen/native/GroupedMMUtils.h`).

    Of [S, K] and [E, K, N] it is [S, N], of [M, S] and [S, N] it is [E, M, N].
    """
    groups = offsets.shape[0] if offsets is not None else left.shape[0]
    flat = left.dim(), right.dim()
    shape = [left.shape[-2], right.shape[-1]]
    if flat in ((2, 2), (3, 3)):
        shape = [groups, *shape]
    step = 16 // left.element_size()
    width = -(-shape[-1] // step) * step
    strides = [shape[-2] * width, width, 1][-len(shape) :]
    return torch.empty_strided(shape, strides, dtype=out_dtype or left.dtype, device=left.device)


def _cudnn_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, keeps_sums: bool,
    *rest: Any, **more: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """The results of `_cudnn_attention_forward` (`ATen/native/transformers/cuda/attention.cu`).

    On `meta` it has sums of rows even where nothing needs them.
    """
    on_meta = meta__scaled_dot_product_cudnn_attention
    out, sums, *beside = on_meta(query, key, value, bias, keeps_sums, *rest, **more)
    return (out, sums if keeps_sums else None, *beside)


def _rms_norm(
    input: Tensor,  # noqa: A002  (the schema's name)
    normalized_shape: list[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    if weight is not None and weight.dtype != input.dtype:
        return NotImplemented
    return FusedRmsNorm.apply(input, tuple(normalized_shape), weight)  # type: ignore[no-untyped-call]


def _widening(op: Any) -> Callable[..., Any]:
    def widen(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:  # noqa: A002
        if input.dtype == torch.float16 and dtype == torch.float32:
            return op(input, dim, True)
        return NotImplemented

    return widen


def _replacements(cache: CastCache) -> Iterator[tuple[Any, str, Any]]:
    """Functions of PyTorch that choose by device: where, which, and what stands in."""
    from torch.amp import GradScaler
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    yield torch.autocast, "__init__", _autocast_of_the_card(torch.autocast.__init__)
    yield torch, "clear_autocast_cache", _both(torch.clear_autocast_cache, cache.clear)
    yield GradScaler, "__init__", _disabled_scaler(GradScaler.__init__)
    yield (
        torch.utils.checkpoint,
        "_infer_device_type",
        _device_of_the_card(torch.utils.checkpoint._infer_device_type),
    )
    for place in (optimizer, _foreach_utils):
        for name in (
            "_get_foreach_kernels_supported_devices",
            "_get_fused_kernels_supported_devices",
        ):
            yield place, name, _with_meta(getattr(place, name))
    yield torch.cuda, "synchronize", lambda device=None: None


def _autocast_of_the_card(init: Callable[..., None]) -> Callable[..., None]:
    """PyTorch turns autocast for CUDA off where there is no CUDA, and knows none for `meta`."""

    def __init__(  # noqa: N807
        self: Any,
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        on_card = device_type in _ON_CARD
        init(
            self,
            "cuda" if on_card else device_type,
            dtype=dtype,
            enabled=enabled and not on_card,
            cache_enabled=cache_enabled,
        )
        if on_card:
            self._enabled = enabled

    return __init__


def _disabled_scaler(init: Callable[..., None]) -> Callable[..., None]:
    parameters = inspect.signature(init)

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N807
        given = parameters.bind(*args, **kwargs)
        if given.arguments.get("device", "cuda") in _ON_CARD:
            given.arguments.update(device="cuda", enabled=False)
        init(*given.args, **given.kwargs)

    return __init__


def _device_of_the_card(infer: Callable[..., str]) -> Callable[..., str]:
    def inferred(*args: Any) -> str:
        found = infer(*args)
        return "cuda" if found == "meta" else found

    return inferred


def _with_meta(devices: Callable[[], list[str]]) -> Callable[[], list[str]]:
    return lambda: [*devices(), "meta"]


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        first()
        second()

    return run


class _CudaIsMeta(TorchFunctionMode):
    """Tensors that are asked for on CUDA are made on `meta`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0].to("meta")
        if func is torch.Tensor.pin_memory:
            return args[0]
        if _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": "meta"}
        if func is torch.Tensor.to:
            args = tuple("meta" if _is_cuda(arg) else arg for arg in args)
        return func(*args, **kwargs)


def _is_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.split(":")[0] == "cuda"
