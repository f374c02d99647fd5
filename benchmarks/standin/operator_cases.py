"""Calls of operators that language models and their training make.

Each case makes its tensors on a device and returns the call. Shapes are such that the kernels take
their ways for much data. Operators that need values (`nonzero`, `unique`, masks as indices) are
left out, since a simulation has none, and convolutions, which need cuDNN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Call = Callable[[], Any]
BF16, F32 = torch.bfloat16, torch.float32


class Tensors:
    """Zeros on a device.

    Args:
        device: such as `cuda`.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def bf16(self, *shape: int) -> Tensor:
        """In bfloat16."""
        return torch.zeros(shape, dtype=BF16, device=self.device)

    def f32(self, *shape: int) -> Tensor:
        """In float32."""
        return torch.zeros(shape, device=self.device)

    def i64(self, *shape: int) -> Tensor:
        """In int64."""
        return torch.zeros(shape, dtype=torch.int64, device=self.device)

    def weights(self) -> list[Tensor]:
        """Parameters with gradients, as a small model has them."""
        shapes = ((1024, 1024), (4096, 1024), (1024,), (32_000, 256))
        found = [self.f32(*shape).requires_grad_() for shape in shapes]
        for weight in found:
            weight.grad = torch.zeros_like(weight)
        return found


Case = Callable[[Tensors], Call]


def forward(function: Callable[..., Any], *inputs: Any) -> Call:
    """A call without gradients."""
    return lambda: function(*inputs)


def backward(function: Callable[..., Tensor], *inputs: Any) -> Call:
    """A call and its backward pass, to all inputs of floating point."""
    wanted = [x.requires_grad_() for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]

    def call() -> Any:
        out = function(*inputs)
        return torch.autograd.grad(out, wanted, torch.ones_like(out))

    return call


def attention(  # noqa: PLR0913  (what a call depends on)
    *, dtype: torch.dtype = BF16, heads: int = 8, groups: int = 8, queries: int = 1024,
    keys: int = 1024, width: int = 64, laid_out: bool = True, trains: bool = True,
    mask: bool = False, **options: Any,
) -> Case:  # fmt: skip
    """`scaled_dot_product_attention`, of [B, T, H, D] in memory or, not laid out, [B, H, T, D]."""

    def case(make: Tensors) -> Call:
        def part(count: int, tokens: int) -> Tensor:
            if not laid_out:
                return torch.zeros(2, count, tokens, width, dtype=dtype, device=make.device)
            rows = torch.zeros(2, tokens, count, width, dtype=dtype, device=make.device)
            return rows.transpose(1, 2)

        inputs = part(heads, queries), part(groups, keys), part(groups, keys)
        if mask:
            options["attn_mask"] = torch.zeros(queries, keys, dtype=torch.bool, device=make.device)
        options.update(enable_gqa=groups != heads)
        run = backward if trains else forward
        return run(
            lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, **options), *inputs
        )

    return case


def step(make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]) -> Case:
    """An optimizer's step."""
    return lambda make: make_optimizer(make.weights()).step


NORMS: dict[str, Case] = {
    "layer_norm": lambda t: backward(
        lambda x, w, b: functional.layer_norm(x, (1024,), w, b),
        t.bf16(4096, 1024),
        t.bf16(1024),
        t.bf16(1024),
    ),
    "layer_norm, 100,000 rows": lambda t: backward(
        lambda x, w, b: functional.layer_norm(x, (256,), w, b),
        t.bf16(100_000, 256),
        t.bf16(256),
        t.bf16(256),
    ),
    "rms_norm": lambda t: backward(
        lambda x, w: functional.rms_norm(x, (1024,), w), t.bf16(4096, 1024), t.bf16(1024)
    ),
    "group_norm": lambda t: backward(
        lambda x, w, b: functional.group_norm(x, 8, w, b), t.f32(8, 64, 4096), t.f32(64), t.f32(64)
    ),
    "softmax": lambda t: backward(lambda x: x.softmax(-1), t.bf16(512, 8192)),
    "softmax to float32": lambda t: backward(lambda x: x.softmax(-1, dtype=F32), t.bf16(512, 8192)),
    "log_softmax": lambda t: backward(lambda x: x.log_softmax(-1), t.f32(512, 8192)),
    "logsumexp": lambda t: backward(lambda x: x.logsumexp(-1), t.bf16(512, 32_000)),
    "gelu": lambda t: backward(functional.gelu, t.bf16(512, 4096)),
    "silu": lambda t: backward(functional.silu, t.bf16(512, 4096)),
    "dropout": lambda t: backward(lambda x: functional.dropout(x, 0.1), t.bf16(512, 4096)),
}
LOSSES: dict[str, Case] = {
    "cross_entropy": lambda t: backward(functional.cross_entropy, t.bf16(512, 32_000), t.i64(512)),
    "cross_entropy, smoothed": lambda t: backward(
        lambda x, y: functional.cross_entropy(x, y, label_smoothing=0.1),
        t.f32(512, 32_000),
        t.i64(512),
    ),
    "mse_loss": lambda t: backward(functional.mse_loss, t.bf16(512, 4096), t.bf16(512, 4096)),
    "binary_cross_entropy_with_logits": lambda t: backward(
        functional.binary_cross_entropy_with_logits, t.f32(512, 4096), t.f32(512, 4096)
    ),
    "kl_div": lambda t: backward(
        lambda x, y: functional.kl_div(x, y, reduction="batchmean"),
        t.f32(512, 4096),
        t.f32(512, 4096),
    ),
}
REDUCTIONS: dict[str, Case] = {
    "sum": lambda t: forward(torch.sum, t.bf16(1 << 24)),
    "sum of rows": lambda t: forward(lambda x: x.sum(-1), t.bf16(8, 1 << 21)),
    "sum over rows": lambda t: forward(lambda x: x.sum(0), t.bf16(65_536, 256)),
    "sum over rows, float32": lambda t: forward(lambda x: x.sum(0), t.f32(4096, 4096)),
    "sum over batch and rows": lambda t: forward(lambda x: x.sum((0, 1)), t.bf16(4, 2000, 768)),
    "sum over the middle": lambda t: forward(lambda x: x.sum(1), t.f32(3, 5000, 100)),
    "sum of columns": lambda t: forward(lambda x: x.t().sum(-1), t.f32(20_000, 130)),
    "sum of integers": lambda t: forward(lambda x: (x > 0).sum(), t.i64(1 << 20)),
    "mean to float32": lambda t: forward(lambda x: x.mean(0, dtype=F32), t.bf16(30_000, 96)),
    "var_mean": lambda t: backward(lambda x: torch.var_mean(x, 0)[0], t.f32(30_000, 96)),
    "norm": lambda t: backward(torch.linalg.vector_norm, t.f32(1 << 22)),
    "amax": lambda t: forward(lambda x: x.amax(0), t.bf16(30_000, 96)),
    "max over rows": lambda t: backward(lambda x: x.max(0)[0], t.f32(30_000, 96)),
    "argmax": lambda t: forward(lambda x: x.argmax(-1), t.bf16(8, 128_256)),
    "isfinite, all": lambda t: forward(lambda x: x.isfinite().all(), t.bf16(4096, 4096)),
    "bias gradient": lambda t: backward(torch.add, t.bf16(8192, 1024), t.bf16(1024)),
    "cumsum": lambda t: forward(lambda x: x.cumsum(-1), t.f32(1 << 20)),
}
PRODUCTS: dict[str, Case] = {
    "linear": lambda t: backward(
        functional.linear, t.bf16(4, 512, 1024), t.bf16(2048, 1024), t.bf16(2048)
    ),
    "linear, float32": lambda t: backward(
        functional.linear, t.f32(2048, 1024), t.f32(1024, 1024), t.f32(1024)
    ),
    "linear without bias": lambda t: backward(
        functional.linear, t.bf16(4, 512, 1024), t.bf16(2048, 1024)
    ),
    "mm, every other element": lambda t: forward(
        torch.mm, t.bf16(1024, 2048)[::2, ::2], t.bf16(1024, 2048)
    ),
    "bmm": lambda t: backward(torch.bmm, t.bf16(8, 512, 256), t.bf16(8, 256, 128)),
    "baddbmm": lambda t: backward(
        torch.baddbmm, t.bf16(8, 512, 128), t.bf16(8, 512, 256), t.bf16(8, 256, 128)
    ),
    "einsum": lambda t: backward(
        lambda x, y: torch.einsum("bthd,bshd->bhts", x, y),
        t.bf16(2, 256, 8, 64),
        t.bf16(2, 256, 8, 64),
    ),
}
INDICES: dict[str, Case] = {
    "embedding": lambda t: backward(functional.embedding, t.i64(4, 2048), t.bf16(32_000, 1024)),
    "embedding, few tokens": lambda t: backward(
        functional.embedding, t.i64(4, 512), t.bf16(32_000, 1024)
    ),
    "embedding_bag": lambda t: backward(
        lambda i, w: functional.embedding_bag(i, w, mode="sum"), t.i64(4096, 8), t.bf16(32_000, 256)
    ),
    "rows by index": lambda t: backward(lambda x, i: x[i], t.bf16(4096, 256), t.i64(8192)),
    "columns by index": lambda t: backward(lambda x, i: x[:, i], t.bf16(16, 4096, 64), t.i64(8192)),
    "gather": lambda t: backward(lambda x, i: x.gather(1, i), t.f32(4096, 4096), t.i64(4096, 8)),
    "index_select": lambda t: backward(
        lambda x, i: x.index_select(0, i), t.bf16(4096, 256), t.i64(8192)
    ),
    "index_add": lambda t: backward(
        lambda x, y, i: x.index_add(0, i, y), t.f32(4096, 256), t.f32(8192, 256), t.i64(8192)
    ),
    "scatter_add": lambda t: backward(
        lambda x, y, i: x.scatter_add(0, i, y), t.f32(4096, 256), t.f32(8192, 256), t.i64(8192, 256)
    ),
    "index_put, accumulating": lambda t: forward(
        lambda x, i, y: x.index_put_((i,), y, accumulate=True),
        t.f32(4096),
        t.i64(65_536),
        t.f32(65_536),
    ),
    "one_hot": lambda t: forward(lambda i: functional.one_hot(i, 64), t.i64(65_536)),
    "repeat_interleave": lambda t: forward(
        lambda x: x.repeat_interleave(4, 1), t.bf16(8, 8, 1024, 64)
    ),
    "cat": lambda t: backward(
        lambda x, y: torch.cat([x, y], -1), t.bf16(512, 4096), t.bf16(512, 64)
    ),
    "tril": lambda t: forward(torch.tril, t.bf16(4096, 4096)),
    "masked_fill": lambda t: backward(
        lambda x, m: x.masked_fill(m > 0, -1.0), t.bf16(4096, 1024), t.i64(4096, 1024)
    ),
}
SORTS: dict[str, Case] = {
    "sort, short rows": lambda t: forward(torch.sort, t.f32(16, 1024)),
    "sort, one row": lambda t: forward(torch.sort, t.f32(1 << 20)),
    "sort, some rows": lambda t: forward(torch.sort, t.bf16(8, 128_256)),
    "sort, many rows": lambda t: forward(torch.sort, t.f32(200, 8192)),
    "sort, four rows of two million": lambda t: forward(torch.sort, t.f32(4, 2_000_000)),
    "sort, columns": lambda t: forward(lambda x: x.sort(0), t.f32(8192, 16)),
    "sort, booleans": lambda t: forward(lambda x: (x > 0).sort(), t.i64(16, 8192)),
    "topk of one row": lambda t: forward(lambda x: x.topk(50), t.f32(1, 128_256)),
    "topk of a vocabulary": lambda t: forward(lambda x: x.topk(50), t.bf16(8, 128_256)),
    "topk of experts": lambda t: backward(lambda x: x.topk(8)[0], t.f32(65_536, 64)),
    "topk of many long rows": lambda t: forward(lambda x: x.topk(5), t.f32(5000, 32_000)),
    "multinomial": lambda t: forward(lambda x: torch.multinomial(x, 1), t.f32(8, 128_256)),
    "multinomial, several": lambda t: forward(lambda x: torch.multinomial(x, 4), t.f32(8, 128_256)),
    "multinomial, with replacement": lambda t: forward(
        lambda x: torch.multinomial(x, 4, replacement=True), t.f32(8, 128_256)
    ),
}
ATTENTION: dict[str, Case] = {
    **{
        f"flash, heads of {d}": attention(width=d, is_causal=True)
        for d in (32, 36, 64, 80, 96, 128, 192, 256)
    },
    "flash, [B, H, T, D]": attention(laid_out=False, is_causal=True),
    "flash, grouped": attention(groups=2, is_causal=True),
    "flash, dropout": attention(dropout_p=0.1, is_causal=True),
    "flash, 777 tokens": attention(queries=777, keys=777, is_causal=True),
    "flash, inference": attention(trains=False, is_causal=True),
    "flash, one query": attention(trains=False, queries=1, keys=4099, width=128),
    "flash, one query, grouped": attention(trains=False, queries=1, keys=4096, groups=2),
    "flash, 16 queries of 32K": attention(trains=False, queries=16, keys=32_768),
    "flash, 128 queries, two heads": attention(
        trains=False, heads=2, groups=2, queries=128, keys=4096, width=128
    ),
    **{
        f"efficient, float32, heads of {d}": attention(dtype=F32, width=d, is_causal=True)
        for d in (32, 64, 128, 256)
    },
    **{
        f"efficient, mask, heads of {d}": attention(width=d, mask=True)
        for d in (40, 64, 96, 128, 192)
    },
    "efficient, 777 tokens": attention(queries=777, keys=777, mask=True),
    "efficient, inference": attention(dtype=F32, trains=False),
    "math, grouped, float32": attention(dtype=F32, groups=2),
    "math, grouped, mask": attention(groups=2, mask=True),
}
OPTIMIZERS: dict[str, Case] = {
    "AdamW": step(torch.optim.AdamW),
    "AdamW, one at a time": step(lambda p: torch.optim.AdamW(p, foreach=False)),
    "AdamW, fused": step(lambda p: torch.optim.AdamW(p, fused=True)),
    "SGD with momentum": step(lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True)),
    "RMSprop": step(torch.optim.RMSprop),
    "Adagrad": step(torch.optim.Adagrad),
    "clip_grad_norm_": lambda t: forward(nn.utils.clip_grad_norm_, t.weights(), 1.0),
}
CASES: dict[str, Case] = {
    **NORMS,
    **LOSSES,
    **REDUCTIONS,
    **PRODUCTS,
    **INDICES,
    **SORTS,
    **ATTENTION,
    **OPTIMIZERS,
}
