"""The transformer: layers between an embedding and a projection onto the vocabulary.

It runs in two ways. `hidden_states` is training: a whole sequence, differentiable, under a
checkpointing policy. `extend` is inference: a chunk of the prompt, or one token, over the cache.
The residual stream is one row a token.

Shapes: T = batch * chunk tokens, sequence by sequence; H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from tritter_model.bitlinear import BitLinear, Table
from tritter_model.checkpointing import run_layers
from tritter_model.config import ModelConfig, TrainingConfig
from tritter_model.initialise import initialise
from tritter_model.kv_cache import KVCache
from tritter_model.labels import WEIGHTS, label
from tritter_model.layer import Chunk, Layer, Sequences
from tritter_model.norm import RMSNorm, Stream, norm_weight
from tritter_model.ops.angles import rotary_angles
from tritter_model.ops.dense import shared
from tritter_model.ops.tuning import tuning
from tritter_model.vision import VisionTower


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
            weight = norm_weight((config.hidden_size,), config, device, trainable)
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
        stream = Stream(x, tuning().fused_add_norm and all(b.quantises for b in self.blocks))
        angles = self._angles(ids_BC.shape[1], cache.position)
        for layer, layer_cache in zip(self.blocks, cache.layers, strict=True):
            layer(stream, Chunk(layer_cache, cache.position, cache.length, multiprocessors, angles))
        cache.advance(ids_BC.shape[1])
        residual: Tensor = stream.sum().unflatten(0, ids_BC.shape)
        return residual

    def _angles(self, tokens: int, position: Tensor) -> Tensor | None:
        """Cosine and sine of new tokens' positions, where all layers are to share them."""
        if not tuning().angles_once:
            return None
        return rotary_angles(position, tokens, self.config.head_dim, self.config.rope_theta)

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
            raise ValueError(f"got {self.config.weight_format} weights; only ternary ones pack")
        device = self.norm.weight.device
        model = Transformer(self.config, torch.device("meta")).to_empty(device=device)
        state = {k: v for k, v in self.state_dict().items() if k in model.state_dict()}
        model.load_state_dict(state, strict=False)
        model.embedding.store(self.embedding.weight)
        model.head.store(self.head.weight)
        for name, linear in self.named_modules():
            if isinstance(linear, BitLinear):
                model.set_submodule(name, linear.packed_for(self.config))
        return model
