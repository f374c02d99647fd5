"""The bundled model: its architecture as data, and the settings that run it."""

from __future__ import annotations

from functools import cache

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Model, Profile
from tritter_mem.models.architecture import Architecture, Layer, SteppedBlock
from tritter_mem.models.attention_blocks import GroupedQueryAttention
from tritter_mem.models.mlp_blocks import GatedMLP
from tritter_mem.models.vision_towers import VISION_TOWERS
from tritter_model.config import CacheConfig, ModelConfig, RunConfig, TrainingConfig

NAME = "tritter"


@cache
def architecture_of(model: Model) -> Architecture:
    """What a profile's `model` describes."""
    return Architecture(
        name=NAME,
        hidden=model.hidden_size,
        vocabulary=model.vocab_size,
        tied=model.tie_word_embeddings,
        layers=tuple(_layer(model, number) for number in range(model.num_hidden_layers)),
        vision=None if model.vision is None else VISION_TOWERS[model.vision],
    )


def _layer(model: Model, number: int) -> Layer[SteppedBlock]:
    every = model.global_attention_every
    reaches_all = every is not None and (number + 1) % every == 0
    attention = GroupedQueryAttention(
        heads=model.num_attention_heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_width,
        window=None if reaches_all else model.sliding_window,
        qk_norm=model.qk_norm,
    )
    return Layer((attention, GatedMLP(model.intermediate_size)))


def run_settings(profile: Profile, card: GpuCard) -> RunConfig:
    """What the bundled model runs for a profile.

    Args:
        profile: a resolved profile.
        card: the card it runs on or stands for; how far decode attention is split depends on it.
    """
    work, training = profile.workload, profile.training
    return RunConfig(
        model=_model(profile),
        cache=CacheConfig(
            dtype=profile.kv_cache.dtype,
            group_size=profile.kv_cache.group_size,
            attention_sinks=profile.kv_cache.attention_sinks,
        ),
        training=TrainingConfig(
            optimizer=training.optimizer,
            checkpointing=training.checkpointing.policy,
            n=training.checkpointing.n,
            loss_chunk=training.loss_chunk,
        ),
        mode=work.mode,
        context=work.context,
        batch=work.batch,
        prefill_chunk=work.prefill_chunk,
        new_tokens=work.new_tokens,
        multiprocessors=card.multiprocessors,
        cuda_graph=work.cuda_graph,
    )


def _model(profile: Profile) -> ModelConfig:
    """The widths are those of the architecture; what it leaves out does not change memory."""
    model, architecture = profile.model, architecture_of(profile.model)
    attention, mlp = architecture.layers[0].blocks
    assert isinstance(attention, GroupedQueryAttention)  # noqa: S101  (`_layer` made them)
    assert isinstance(mlp, GatedMLP)  # noqa: S101
    return ModelConfig(
        hidden_size=architecture.hidden,
        num_hidden_layers=len(architecture.layers),
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        intermediate_size=mlp.inner,
        vocab_size=architecture.vocabulary,
        tie_word_embeddings=architecture.tied,
        rms_norm_eps=model.rms_norm_eps,
        rope_theta=model.rope_theta,
        qk_norm=attention.qk_norm,
        sliding_window=model.sliding_window,
        global_attention_every=model.global_attention_every,
        vision=architecture.vision is not None,
        weight_format=profile.weights.format,
        embedding_dtype=profile.weights.embedding_dtype,
        master_dtype=profile.training.master_dtype,
    )
