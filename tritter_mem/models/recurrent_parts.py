"""What layers with a state have in common: their short convolution, and what they cache.

As transformers runs it without the package causal-conv1d: `causal_conv1d_fn`, and
`LinearAttentionLayer` of `cache_utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from tritter_mem.models.layer_run import LayerRun
from tritter_mem.models.shape_tensors import FLOAT, Operations, Tensor

CONVOLUTION, STATE = "convolution", "state"
"""What a layer caches, by name: the convolution's last inputs, and the state."""


def enough_steps(steps: int) -> int:
    """How many of equal steps stand for all, where each takes what the one before left.

    The first ones still choose among what is free. Then states take turns in two places, so that
    an even number stands for an even one: what comes behind them finds the same memory free.
    """
    return min(steps, 8 - steps % 2)


def goes_on(run: LayerRun, key: str = CONVOLUTION) -> bool:
    """Whether one token runs behind others that the layer remembers, by a name in its cache."""
    return key in run.cache and run.step.tokens == 1


def remembered(x: Tensor, run: LayerRun, kernel: int, key: str = CONVOLUTION) -> Tensor:
    """What is convolved of new inputs [B, C, T], behind those before: `update_conv_state`."""
    ops, (batch, width, tokens) = run.ops, x.shape
    if not run.step.caches:
        return x
    if key in run.cache:
        return ops.cat([run.cache[key], x], -1)
    shape = (batch, width, kernel)
    run.cache[key] = ops.new(shape, x.size, component="kv_cache")
    return x if tokens >= kernel else ops.new(shape, x.size)


def convolved(
    x: Tensor, run: LayerRun, name: str, *, activates: bool = True, key: str = CONVOLUTION
) -> Tensor:
    """A convolution of each channel [B, C, T], and its activation if any: `causal_conv1d_fn`.

    Of one token behind others, `causal_conv1d_update`.

    Args:
        x: what is convolved.
        run: of the layer.
        name: of the weight.
        activates: whether there is an activation.
        key: name of the last inputs in the layer's cache.
    """
    ops, tokens, given = run.ops, run.step.tokens, x.size
    weight, bias = run.weights[name], run.weights.get(f"{name}.bias")
    width, _, kernel = weight.shape
    decodes = goes_on(run, key) and x.shape[2] == 1
    if decodes:
        x = ops.cat([run.cache[key], x], -1)
    length = x.shape[2]
    whole = ops.view(weight, (width, 1, kernel))
    if decodes:
        out = ops.convolution(ops.to(x, weight.size), whole, bias, length - kernel + 1)
        out = ops.slice(out, 2, 1)
    else:
        out = ops.convolution(ops.to(x, weight.size), whole, bias, length + kernel - 1)
        out = ops.slice(out, 2, length)
    if activates:
        out = ops.pointwise(out)
    out = ops.to(out, given)
    return out if length == tokens or decodes else ops.slice(out, 2, tokens)


def head_views(ops: Operations, x: Tensor, heads: Iterable[tuple[int, int]]) -> list[Tensor]:
    """Views [B, T, heads, width] of parts of x [B, T, C].

    Args:
        ops: makes tensors.
        x: channels of all parts.
        heads: for each part how many it has, and their width.
    """
    batch, tokens, _ = x.shape
    shapes = list(heads)
    parts = ops.split(x, -1, [count * width for count, width in shapes])
    return [
        ops.reshape(part, (batch, tokens, count, width))
        for part, (count, width) in zip(parts, shapes, strict=True)
    ]


def keep_state(state: Tensor, run: LayerRun) -> None:
    """Cache a state: the first time in a tensor for it, then in place."""
    if STATE not in run.cache and run.step.caches:
        run.cache[STATE] = run.ops.new(state.shape, state.size, component="kv_cache")


def short_convolution(x: Tensor, run: LayerRun, name: str) -> Tensor:
    """X [B, T, C] and its convolution over the last tokens, in float32: `InklingShortConvolution`.

    Args:
        x: what is convolved.
        run: of the layer.
        name: of the module; its last inputs are cached by that name.
    """
    ops, given = run.ops, x.size
    residual = ops.to(x, FLOAT)
    weight = f"{name}.conv1d"
    moved = ops.transpose(residual, 1, 2)
    if not goes_on(run, name):
        moved = remembered(moved, run, run.weights[weight].shape[2], name)
    moved = convolved(moved, run, weight, activates=False, key=name)
    total = ops.add(ops.transpose(moved, 1, 2), residual)
    out = ops.to(total, given)
    del total, moved, residual
    return out
