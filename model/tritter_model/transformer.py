"""The transformer: grouped-query attention and a gated squared-ReLU MLP, ternary or not.

It runs in two ways. `hidden_states` is training: a whole sequence, differentiable, under a
checkpointing policy. `extend` is inference: a chunk of the prompt, or one token, over the cache.
The residual stream is one row a token; what a layer no longer needs is let go by rebinding.

Shapes: T = batch * chunk tokens, sequence by sequence; H hidden, A query heads, G key-value heads,
D their width, F intermediate, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from tritter_model.bitlinear import BitLinear, Rows, Table, make_linear
from tritter_model.checkpointing import run_layers
from tritter_model.config import ModelConfig, TrainingConfig
from tritter_model.initialise import initialise
from tritter_model.kv_cache import KVCache, LayerCache
from tritter_model.labels import WEIGHTS, label
from tritter_model.ops.append import append
from tritter_model.ops.attention import Mask
from tritter_model.ops.decode_attention import decode_attention
from tritter_model.ops.dense import shared
from tritter_model.ops.gated_relu2 import gated_relu2, gated_relu2_rows
from tritter_model.ops.prefill_attention import prefill_attention
from tritter_model.ops.rms_norm import rms_norm, rms_norm_rows
from tritter_model.ops.rotary import Heads, rotate_
from tritter_model.ops.rotate_append import rotate_append_
from tritter_model.ops.self_attention import self_attention
from tritter_model.vision import VisionTower


class RMSNorm(nn.Module):
    """x / rms(x) · weight; quantised at once where ternary weights are to take it."""

    def __init__(self, weight: nn.Parameter, eps: float, quantises: bool) -> None:
        super().__init__()
        self.weight, self.eps, self.quantises = weight, eps, quantises

    def forward(self, x: Tensor) -> Rows:
        """[T, H], as a tensor or as int8 rows."""
        return (rms_norm_rows if self.quantises else rms_norm)(x, self.weight, self.eps)


class Sequences(NamedTuple):
    """What a layer is given in training: whole sequences."""

    batch: int
    sinks: int


class Chunk(NamedTuple):
    """What a layer is given in inference: new tokens, behind those that its cache holds.

    `position` is that of the first new token on the device, `length` the same number on the host.
    """

    cache: LayerCache
    position: Tensor
    length: int
    multiprocessors: int


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
        norm = partial(_norm_weight, config=config, device=device, trainable=trainable)
        width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.input_norm = self._norm(norm((config.hidden_size,)))
        self.qkv = linear(config.hidden_size, width + 2 * kv_width)
        self.qk_norms = norm((2, config.head_dim)) if config.qk_norm else None
        self.out = linear(width, config.hidden_size)
        self.mlp_norm = self._norm(norm((config.hidden_size,)))
        self.gate_up = linear(config.hidden_size, 2 * config.intermediate_size)
        self.down = linear(config.intermediate_size, config.hidden_size)

    def _norm(self, weight: nn.Parameter) -> RMSNorm:
        return RMSNorm(weight, self.config.rms_norm_eps, self.quantises)

    def heads(self, batch: int) -> Heads:
        """How the fused projection's rows split."""
        c = self.config
        return Heads(
            batch, c.num_attention_heads, c.num_key_value_heads, c.rope_theta, c.rms_norm_eps
        )

    def project_qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values, not yet rotated: [T, A + 2G, D]."""
        return self.qkv(self.input_norm(x)).unflatten(1, (-1, self.config.head_dim))  # type: ignore[no-any-return]

    def mlp(self, x: Tensor) -> Tensor:
        """[T, H]: norm, gate and up, relu(gate)² · up, down."""
        rows = self.mlp_norm(x)
        rows = self.gate_up(rows)
        rows = gated_relu2_rows(rows) if self.quantises else gated_relu2(rows)
        return self.down(rows)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, work: Sequences | Chunk) -> Tensor:
        """[T, H]: a new tensor for whole sequences, x itself for a chunk."""
        return self._extend(x, work) if isinstance(work, Chunk) else self._train(x, *work)

    def _train(self, x: Tensor, batch: int, sinks: int) -> Tensor:
        mask = Mask(True, self.window, sinks)
        mixed = self_attention(self.project_qkv(x), self.qk_norms, self.heads(batch), mask)
        x = x + self.out(mixed)
        del mixed
        return x + self.mlp(x)

    def _extend(self, x: Tensor, chunk: Chunk) -> Tensor:
        mixed = self._attend(x, chunk)
        mixed = self.out(mixed)
        x.add_(mixed)
        del mixed
        return x.add_(self.mlp(x))

    def _attend(self, x: Tensor, chunk: Chunk) -> Tensor:
        """[T, A * D]: one token a sequence is decoded, more are a chunk of the prompt."""
        cache, position, length, multiprocessors = chunk
        heads = self.config.num_attention_heads
        qkv, split = self.project_qkv(x), self.heads(cache.batch)
        if qkv.shape[0] == cache.batch:
            rotate_append_(qkv, self.qk_norms, split, position, cache)
            return decode_attention(qkv, cache, position, length, heads, multiprocessors)
        rotate_(qkv, self.qk_norms, split, position)
        mixed = prefill_attention(qkv, cache, length, heads)
        append(qkv, cache, position, heads)
        return mixed


def _norm_weight(
    shape: tuple[int, ...], config: ModelConfig, device: torch.device, trainable: bool
) -> nn.Parameter:
    dtype = getattr(torch, config.master_dtype if trainable else config.compute_dtype)
    return nn.Parameter(torch.ones(shape, dtype=dtype, device=device), requires_grad=trainable)


class Transformer(nn.Module):
    """The language model, with its vision tower where it has one.

    Args:
        config: the architecture and how its weights are stored.
        device: where they live; on `meta` nothing is initialised.
        trainable: master weights that are trained, or weights as inference stores them.
        seed: of the random weights.
    """

    def __init__(
        self, config: ModelConfig, device: torch.device, trainable: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        self.config, self.dtype = config, getattr(torch, config.compute_dtype)
        with label(WEIGHTS):
            self.embedding = Table(config, device, trainable)
            self.layers = nn.ModuleList(
                Layer(config, i, device, trainable) for i in range(config.num_hidden_layers)
            )
            weight = _norm_weight((config.hidden_size,), config, device, trainable)
            self.norm = RMSNorm(weight, config.rms_norm_eps, quantises=False)
            tied = config.tie_word_embeddings
            self.head = self.embedding if tied else Table(config, device, trainable)
            self.vision: VisionTower | None = None
            if config.vision:
                self.vision = VisionTower(config.hidden_size, self.dtype, device)
        initialise(self, seed)

    def extend(
        self, ids_BC: Tensor, cache: KVCache, multiprocessors: int, prefix: Tensor | None = None
    ) -> Tensor:
        """Run a chunk over the cache, which then holds it too.

        Args:
            ids_BC: token ids; negative ones where the prefix stands.
            cache: holds the tokens before.
            multiprocessors: of the card.
            prefix: [B, P, H] of this chunk's first P positions, or None.

        Returns:
            The residual stream [B, C, H]; `logits` makes logits of it.

        Raises:
            ValueError: the cache has no room for so many tokens.
        """
        cache.check_room(ids_BC.shape[1])
        x = self.embedding.embed(ids_BC.flatten(), prefix, self.dtype)
        for layer, layer_cache in zip(self.blocks, cache.layers, strict=True):
            layer(x, Chunk(layer_cache, cache.position, cache.length, multiprocessors))
        cache.advance(ids_BC.shape[1])
        residual: Tensor = x.unflatten(0, ids_BC.shape)
        return residual

    @property
    def blocks(self) -> list[Layer]:
        """The layers, as what they are."""
        return cast("list[Layer]", list(self.layers))

    def logits(self, x_BCH: Tensor) -> Tensor:
        """[B, V] of each sequence's last token."""
        return self.head.project(self.norm(x_BCH[:, -1]))

    def all_logits(self, x_BCH: Tensor) -> Tensor:
        """[B, C, V]."""
        logits = self.head.project(self.norm(x_BCH.flatten(0, 1)))
        by_sequence: Tensor = logits.unflatten(0, x_BCH.shape[:2])
        return by_sequence

    def hidden_states(
        self, embedded_TH: Tensor, batch: int, training: TrainingConfig, sinks: int = 0
    ) -> Tensor:
        """Whole sequences under a checkpointing policy, normalised: [T, H].

        Args:
            embedded_TH: the embedded tokens, sequence by sequence.
            batch: number of sequences.
            training: says the policy.
            sinks: first tokens that every window sees.
        """
        layers: list[Callable[[Tensor], Tensor]] = [
            partial(layer, work=Sequences(batch, sinks)) for layer in self.blocks
        ]
        x = run_layers(layers, embedded_TH, training.checkpointing, training.n)
        return self.norm(x)  # type: ignore[no-any-return]

    def loss(
        self, ids_BS: Tensor, targets_BS: Tensor, training: TrainingConfig,
        sinks: int = 0, prefix: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Mean cross-entropy of the next tokens; targets of -100 are left out."""
        table: Tensor = self.embedding.weight
        head: Tensor = self.head.weight
        if self.head is self.embedding:
            table, head = shared(table)
        x = self.embedding.embed(ids_BS.flatten(), prefix, self.dtype, table)
        x = self.hidden_states(x, ids_BS.shape[0], training, sinks)
        return self.head.loss(x, targets_BS.flatten(), training.loss_chunk, head)

    def packed(self) -> Transformer:
        """The trained model as inference stores it.

        Its linear layers and norms compute what the trained ones compute, bit for bit; its tables
        are rounded to `embedding_dtype`.

        Raises:
            ValueError: the weights are not ternary.
        """
        if not self.config.is_ternary:
            raise ValueError(f"found {self.config.weight_format} weights; only ternary ones pack")
        device = self.norm.weight.device
        model = Transformer(self.config, torch.device("meta")).to_empty(device=device)
        state = {k: v for k, v in self.state_dict().items() if k in model.state_dict()}
        model.load_state_dict(state, strict=False)
        model.embedding.store(self.embedding.weight)
        model.head.store(self.head.weight)
        for ours, theirs in zip(self.blocks, model.blocks, strict=True):
            for name, linear in ours.named_children():
                if isinstance(linear, BitLinear):
                    setattr(theirs, name, linear.packed_for(self.config))
        return model
