"""One transformer layer: grouped-query attention, then the MLP.

It runs in two ways: over whole sequences in training, and over a chunk of the prompt, or one token,
behind what its cache holds. What it no longer needs is let go by rebinding.

Shapes: T = batch * chunk tokens, sequence by sequence; H hidden, A query heads, G key-value heads,
D their width.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from tritter_model.bitlinear import Rows, make_linear
from tritter_model.config import ModelConfig
from tritter_model.kv_cache import LayerCache
from tritter_model.mlp import MLP
from tritter_model.norm import RMSNorm, Stream, norm_weight
from tritter_model.ops.append import append
from tritter_model.ops.attention import Mask
from tritter_model.ops.decode_attention import decode_attention, decode_attention_rows
from tritter_model.ops.prefill_attention import prefill_attention
from tritter_model.ops.rotary import Heads, rotate_
from tritter_model.ops.rotate_append import rotate_append_
from tritter_model.ops.self_attention import self_attention
from tritter_model.ops.tuning import tuning


class Sequences(NamedTuple):
    """What a layer is given in training: whole sequences."""

    batch: int
    sinks: int


class Chunk(NamedTuple):
    """What a layer is given in inference: new tokens, behind those that its cache holds.

    `position` is that of the first new token on the device, `length` the same number on the host.
    `angles` are those of the new tokens (`rotary_angles`) where they are computed once for all
    layers.
    """

    cache: LayerCache
    position: Tensor
    length: int
    multiprocessors: int
    angles: Tensor | None = None


class Layer(nn.Module):
    """One transformer layer.

    Args:
        config: the architecture.
        index: which layer; decides the window.
        device: where the weights live.
        trainable: master weights that are trained, or weights as inference stores them.
    """

    def __init__(
        self, config: ModelConfig, index: int, device: torch.device, trainable: bool
    ) -> None:
        super().__init__()
        self.config, self.window = config, config.window_of(index) or 0
        self.quantises = config.is_ternary and not trainable
        linear = partial(make_linear, config=config, device=device, trainable=trainable)
        norm = partial(norm_weight, config=config, device=device, trainable=trainable)
        width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.input_norm = RMSNorm(norm((config.hidden_size,)), config.rms_norm_eps, self.quantises)
        self.qkv = linear(config.hidden_size, width + 2 * kv_width)
        self.qk_norms = norm((2, config.head_dim)) if config.qk_norm else None
        self.out = linear(width, config.hidden_size)
        self.mlp = MLP(config, device, trainable)

    def heads(self, batch: int) -> Heads:
        """How the fused projection's rows split."""
        c = self.config
        return Heads(
            batch, c.num_attention_heads, c.num_key_value_heads, c.rope_theta, c.rms_norm_eps
        )

    def project_qkv(self, x: Tensor | Stream) -> Tensor:
        """Queries, keys and values, not yet rotated: [T, A + 2G, D]."""
        return self.qkv(self.input_norm(x)).unflatten(1, (-1, self.config.head_dim))  # type: ignore[no-any-return]

    def forward(self, x: Tensor | Stream, work: Sequences | Chunk) -> Tensor:
        """[T, H]: a new tensor for whole sequences, the stream's own for a chunk."""
        if isinstance(work, Chunk):
            return self._extend(cast("Stream", x), work)
        return self._train(cast("Tensor", x), *work)

    def _train(self, x: Tensor, batch: int, sinks: int) -> Tensor:
        mask = Mask(True, self.window, sinks)
        mixed = self_attention(self.project_qkv(x), self.qk_norms, self.heads(batch), mask)
        x = x + self.out(mixed)
        del mixed
        return x + self.mlp(x)  # type: ignore[no-any-return]

    def _extend(self, x: Stream, chunk: Chunk) -> Tensor:
        rows = self._attend(x, chunk)
        mixed = self.out(rows)
        del rows
        x.add(mixed)
        del mixed
        x.add(self.mlp(x))
        return x.x

    def _attend(self, x: Stream, chunk: Chunk) -> Rows:
        """[T, A * D]: one token a sequence is decoded, more are a chunk of the prompt."""
        cache, position, length, multiprocessors, angles = chunk
        heads = self.config.num_attention_heads
        qkv, split = self.project_qkv(x), self.heads(cache.batch)
        if qkv.shape[0] == cache.batch:
            rotate_append_(qkv, self.qk_norms, split, position, cache, angles)
            fused = self.quantises and tuning().fused_merge
            decode = decode_attention_rows if fused else decode_attention
            return decode(qkv, cache, position, length, heads, multiprocessors)
        rotate_(qkv, self.qk_norms, split, position, angles)
        mixed = prefill_attention(qkv, cache, length, heads)
        append(qkv, cache, position, heads)
        return mixed
