"""From a profile to the bundled model's own configuration."""

from __future__ import annotations

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Profile
from tritter_model.config import CacheConfig, ModelConfig, RunConfig, TrainingConfig


def run_settings(profile: Profile, card: GpuCard) -> RunConfig:
    """What the bundled model runs for a profile.

    Args:
        profile: a resolved profile.
        card: the card it runs on or stands for; how far decode attention is split depends on it.
    """
    work = profile.workload
    return RunConfig(
        model=_model(profile),
        cache=CacheConfig(
            dtype=profile.kv_cache.dtype,
            group_size=profile.kv_cache.group_size,
            attention_sinks=profile.kv_cache.attention_sinks,
        ),
        training=TrainingConfig(
            optimizer=profile.training.optimizer,
            checkpointing=profile.training.checkpointing.policy,
            n=profile.training.checkpointing.n,
            loss_chunk=profile.training.loss_chunk,
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
    model = profile.model
    return ModelConfig(
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_width,
        intermediate_size=model.intermediate_size,
        vocab_size=model.vocab_size,
        tie_word_embeddings=model.tie_word_embeddings,
        rms_norm_eps=model.rms_norm_eps,
        rope_theta=model.rope_theta,
        qk_norm=model.qk_norm,
        sliding_window=model.sliding_window,
        global_attention_every=model.global_attention_every,
        vision=model.vision is not None,
        weight_format=profile.weights.format,
        embedding_dtype=profile.weights.embedding_dtype,
        master_dtype=profile.training.master_dtype,
    )
