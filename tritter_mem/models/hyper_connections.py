"""Several residual streams, mixed before and behind each part of a layer: DeepSeek-V4.

As `DeepseekV4HyperConnection` and `DeepseekV4HyperHead` of transformers 5.23 write it.
"""

from __future__ import annotations

from tritter_mem.models.layer_run import LayerRun
from tritter_mem.models.shape_tensors import FLOAT, Operations, Tensor


def root_scaled(ops: Operations, x: Tensor) -> Tensor:
    """X over the root of its mean square, which is found in float32."""
    return ops.mul(
        x, ops.to(ops.rsqrt(ops.shifted(ops.mean(ops.square(ops.to(x, FLOAT))))), x.size)
    )


def collapsed(run: LayerRun, x: Tensor, shares: Tensor) -> Tensor:
    """One stream [B, T, H] of several [B, T, N, H], by the shares [B, T, N] of each."""
    ops, (batch, tokens, _, width) = run.ops, x.shape
    summed = ops.view(ops.sum(ops.mul(_column(ops, shares), x), [2]), (batch, tokens, width))
    return ops.to(summed, x.size)


def mixed(run: LayerRun, x: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """What streams [B, T, N, H] are mixed by around a part of a layer, and what the part takes.

    Args:
        run: of the layer; its dialect says how often the mix is divided by its sums.
        x: the streams.
        name: of the weights.

    Returns:
        How much of the part's result each stream gets [B, T, N], how the streams are mixed
        [B, T, N, N], both in float32, and one stream [B, T, H].
    """
    ops, (batch, tokens, count, width) = run.ops, x.shape
    made = ops.to(ops.view(x, (batch, tokens, count * width)), FLOAT)
    made = root_scaled(ops, made)
    made = ops.linear(made, run.weights[f"{name}.fn"])
    parts = [count, count, count * count]
    before, behind, mix = ops.split(made, -1, parts)
    biases = ops.split(run.weights[f"{name}.base"], 0, parts)
    scales = [ops.view(x, ()) for x in ops.split(run.weights[f"{name}.scale"], 0, [1, 1, 1])]
    square = (batch, tokens, count, count)
    mix = ops.view(mix, square, (*mix.strides[:2], count, 1))
    shares = ops.shifted(_sigmoid(ops, before, scales[0], biases[0]))
    post = ops.scaled(_sigmoid(ops, behind, scales[1], biases[1]))
    bias = ops.view(biases[2], (count, count))
    comb = ops.shifted(ops.softmax(ops.widened(ops.add(ops.mul(mix, scales[2]), bias))))
    comb = _divided(ops, comb, -2)
    for _ in range(run.dialect.mixing_rounds - 1):
        comb = _divided(ops, comb, -1)
        comb = _divided(ops, comb, -2)
    one = collapsed(run, x, shares)
    del made, before, behind, mix, shares
    return post, comb, one


def _sigmoid(ops: Operations, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return ops.pointwise(ops.add(ops.mul(x, scale), bias), saves="output")


def _divided(ops: Operations, x: Tensor, dim: int) -> Tensor:
    """By its sums over a dimension."""
    return ops.divided(x, ops.shifted(ops.sum(x, [dim])))


def joined(run: LayerRun, x: Tensor, made: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """Streams [B, T, N, H] of the streams before, mixed, and a part's result [B, T, H]."""
    ops, (batch, tokens, _, width) = run.ops, x.shape
    row = ops.view(made, (batch, tokens, 1, width))
    return ops.add(
        ops.mul(_column(ops, ops.to(post, x.size)), row),
        ops.matmul(ops.transpose(ops.to(comb, x.size), -1, -2), x),
    )


def head(run: LayerRun, x: Tensor) -> Tensor:
    """One stream [B, T, H] of those that the last layer leaves."""
    ops, (batch, tokens, count, width) = run.ops, x.shape
    flat = root_scaled(ops, ops.to(ops.view(x, (batch, tokens, count * width)), FLOAT))
    made = ops.linear(flat, run.weights["hc_head.hc_fn"])
    scale, base = run.weights["hc_head.hc_scale"], run.weights["hc_head.hc_base"]
    shares = ops.shifted(_sigmoid(ops, made, scale, base))
    one = collapsed(run, x, shares)
    del flat, made, shares
    return one


def _column(ops: Operations, x: Tensor) -> Tensor:
    """[..., N] as [..., N, 1]."""
    return ops.view(x, (*x.shape, 1), (*x.strides, 1))
