"""cuDNN's attention: PyTorch's own choice of it, and the memory that it asks for.

PyTorch takes it on some cards where cuDNN is new enough, so the stand-in says the version that is
installed. The plans that cuDNN makes of an attention cannot be answered by a stand-in, so kernels
in Python take the place of PyTorch's that ask for them: they request what those do, in the same
order (`ATen/native/cudnn/MHA.cpp`), with workspaces as `models/cudnn_attention.py` has them.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

MEASURED_CAPABILITY = (9, 0)
NOT_MEASURED = "workspaces of cuDNN's attention: of the sizes that were measured on an H200"
PACKED = (
    "workspaces of cuDNN's attention for packed sequences: taken to be those of one long sequence"
)


def say_version(torch: Any) -> None:
    """Let the stand-in answer with the version that a GPU would find here.

    That is the installed one, which may be newer than what PyTorch was compiled with.
    """
    say = getattr(ctypes.CDLL(None), "tritter_standin_cudnn_version", None)
    if say is None or not hasattr(torch._C, "_cudnn"):
        return
    from importlib import metadata

    try:
        text = metadata.version(f"nvidia-cudnn-cu{torch.version.cuda.partition('.')[0]}")
        major, minor, patch = map(int, text.split(".")[:3])
    except (metadata.PackageNotFoundError, ValueError):
        major, minor, patch = torch._C._cudnn.getCompileVersion()
    say(ctypes.c_size_t(major * 10_000 + minor * 100 + patch))


class Attention:
    """The kernels of this process.

    Args:
        torch: the module.
        sizes: `models/cudnn_attention.py`.
        note: notes what is not counted as it would be on the card.
    """

    def __init__(self, torch: Any, sizes: Any, note: Callable[[str, str], None]) -> None:
        self._torch = torch
        self._note = note
        self._noted: set[str] = set()
        self._sizes = sizes
        self._library: Any = None

    def install(self) -> None:
        """Take the place of PyTorch's kernels, for tensors on a device."""
        import warnings

        kernels = {
            "_scaled_dot_product_cudnn_attention": self._forward,
            "_scaled_dot_product_cudnn_attention_backward": self._backward,
            "_cudnn_attention_forward": self._forward_of_any,
            "_cudnn_attention_backward": self._backward,
        }
        self._library = self._torch.library.Library("aten", "IMPL")  # kept: kernels go with it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, kernel in kernels.items():
                if hasattr(self._torch.ops.aten, name):
                    self._library.impl(name, kernel, "CUDA")

    def _forward(self, query: Any, key: Any, value: Any, bias: Any, with_sums: bool,
                 *more: Any, **named: Any) -> tuple[Any, ...]:  # fmt: skip
        seed, offset = self._scalar(query), self._scalar(query)
        out = self._laid_out_as(query, (*query.shape[:-1], value.size(-1)))
        sums = self._sums(query, (*query.shape[:-1], 1)) if with_sums else None
        call, device = self._call(query, key, value), query.device
        multiprocessors = self._properties(device).multi_processor_count
        self._take(self._sizes.forward_bytes(call, multiprocessors), device)
        return out, sums, None, None, call.queries, call.keys, seed, offset, None

    def _forward_of_any(self, query: Any, key: Any, value: Any, bias: Any, starts: Any,
                        starts_of_keys: Any, most: int, most_keys: int, with_sums: bool,
                        *more: Any, **named: Any) -> tuple[Any, ...]:  # fmt: skip
        """Of packed sequences too: each tensor has all of them, and `starts` says where."""
        if starts is None:
            return self._forward(query, key, value, bias, with_sums)
        seed, offset = self._scalar(query), self._scalar(query)
        out = self._laid_out_as(query, (*query.shape[:-1], value.size(-1)))
        sums = self._sums(query, (query.size(1), query.size(0))) if with_sums else None
        call, device = self._call(query, key, value), query.device
        self._take(self._sizes.forward_bytes(call, 1), device)
        return out, sums, starts, starts_of_keys, most, most_keys, seed, offset, None

    def _backward(self, gradient: Any, query: Any, key: Any, value: Any, out: Any,
                  *more: Any, **named: Any) -> tuple[Any, ...]:  # fmt: skip
        torch = self._torch
        made = tuple([torch.empty_like(one) for one in (query, key, value)])
        copied = None
        if gradient.stride(-1) != 1:  # cuDNN takes no other: a copy, until the end
            copied = self._laid_out_as(out, tuple(gradient.shape))
        self._take(self._sizes.backward_bytes(self._call(query, key, value)), query.device)
        del copied
        return made

    def _call(self, query: Any, key: Any, value: Any) -> Any:
        packed = query.dim() == 3
        if packed:
            self._note_once(PACKED)
            query, key, value = (one.transpose(0, 1).unsqueeze(0) for one in (query, key, value))
        properties = self._properties(query.device)
        if (properties.major, properties.minor) != MEASURED_CAPABILITY:
            self._note_once(NOT_MEASURED)
        batch, heads, queries, width = query.shape
        return self._sizes.Call(
            batch=batch, heads=heads, groups=key.size(1), queries=queries, keys=key.size(2),
            width=width, value_width=value.size(3),
        )  # fmt: skip

    def _note_once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._note("uncounted", text)

    def _properties(self, device: Any) -> Any:
        return self._torch.cuda.get_device_properties(device)

    def _scalar(self, query: Any) -> Any:
        return self._torch.empty((), dtype=self._torch.int64, device=query.device)

    def _sums(self, query: Any, shape: Sequence[int]) -> Any:
        return self._torch.empty(shape, dtype=self._torch.float32, device=query.device)

    def _laid_out_as(self, like: Any, shape: tuple[int, ...]) -> Any:
        """A tensor whose dimensions lie in memory in the same order as another's."""
        if shape == tuple(like.shape):
            return self._torch.empty_like(like)
        strides, step = [0] * len(shape), 1
        innermost_first = sorted(range(len(shape)), key=lambda at: (like.stride(at), -at))
        for at in innermost_first:
            strides[at] = step
            step *= shape[at]
        return self._torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device)

    def _take(self, nbytes: int, device: Any) -> None:
        """A workspace, which is given back at once; of none, cuDNN asks nothing."""
        if nbytes:
            self._torch.empty(nbytes, dtype=self._torch.uint8, device=device)
