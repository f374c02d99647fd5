"""The table of families: a `model_type` to how its keys are read.

The functions follow the modules and configuration classes of transformers 5.23.0, and for models
that only ship their own code, that code (`nemotron-nas`).
"""

from __future__ import annotations

from dataclasses import replace

from tritter_mem.models.attention_families import (
    GEMMA_NORMS,
    afmoe_dialect,
    afmoe_layers,
    bitnet_attention,
    bitnet_mlp,
    cohere2_attention,
    cohere2_moe_dialect,
    cohere2_moe_layers,
    cohere2_types,
    ernie_layers,
    exaone4_attention,
    exaone4_types,
    gemma2_dialect,
    gemma3_dialect,
    gemma3_types,
    gemma3n_dialect,
    gemma3n_layers,
    gemma3n_outside,
    gemma4_dialect,
    gemma4_layers,
    gemma4_unbuilt,
    gemma_attention,
    glm4_moe_attention,
    gpt_oss_attention,
    gpt_oss_experts,
    hy_v3_experts,
    llama4_layers,
    mimo_layers,
    minimax_m2_attention,
    minimax_m2_dialect,
    minimax_m3_layers,
    muse_spark_layers,
    nemotron_nas_layers,
    olmo_attention,
    per_layer_inputs,
    phi3_attention,
    phimoe_layers,
    qwen2,
    qwen2_moe_dialect,
    qwen2_moe_layers,
    qwen3_moe_layers,
    qwen_experts,
    qwen_mlp,
    qwen_types,
    seed_oss_attention,
    smollm3_layers,
    step_dialect,
    step_layers,
)
from tritter_mem.models.family_parts import (
    FEED_FORWARD_NORMS,
    POST_NORMS,
    Family,
    Outside,
    attention,
    dense,
    dialect,
    final_norm,
    hyper_head,
    indexer,
    mixtral_experts,
    partial_dialect,
    plain_attention,
    plain_layers,
    qwen3,
    routed_experts,
    untied,
)
from tritter_mem.models.huggingface_keys import FULL
from tritter_mem.models.hybrid_families import (
    bamba_dialect,
    bamba_layers,
    falcon_h1_layers,
    granite_hybrid_dialect,
    granite_hybrid_layers,
    inkling_layers,
    jamba_layers,
    lfm2_layers,
    lfm3_layers,
    mamba2_layers,
    mamba_dialect,
    mamba_layers,
    mamba_outside,
    minimax_dialect,
    minimax_layers,
    nemotron_h_dialect,
    nemotron_h_layers,
    olmo_hybrid_dialect,
    olmo_hybrid_layers,
    qwen4_layers,
    qwen4_outside,
    qwen_hybrid,
    qwen_mtp,
    zamba2_dialect,
    zamba2_layers,
    zamba2_outside,
)
from tritter_mem.models.latent_families import (
    bailing_layers,
    deepseek_dialect,
    deepseek_layers,
    deepseek_v4_dialect,
    deepseek_v4_layers,
    glm5_next_layers,
    glm_dsa_layers,
    hy_v4_layers,
    indexed,
    indexed_dialect,
    kimi_linear_layers,
    longcat_layers,
    mistral_large4_layers,
    mistral_large4_outside,
    next_token_layers,
)
from tritter_mem.models.transformers_blocks import Extra, Norms

_BIAS = ("e_score_correction_bias",)

_DEEPSEEK = deepseek_layers()

_DEEPSEEK_V32 = deepseek_layers(attention_of=lambda keys: (indexed(keys), indexer(keys)))

_GLM4_MOE = deepseek_layers(attention_of=glm4_moe_attention)

_LATENT = deepseek_layers(experts=dense, first=0)

_V4_MIXING = ("attn_hc", "ffn_hc", "hc_head", "norm", "sinks", "position_bias")

OLMO = dialect(
    norm="wide", order="behind", names=POST_NORMS.names, rotary="wide halves", wide_angles=True
)

LFM2 = dialect(order="before, all kept", names=("operator_norm", "ffn_norm"), activation="silu")

FAMILIES: dict[str, Family] = {
    "llama": Family(layers=plain_layers(), dialect=dialect()),
    "mistral": Family(layers=plain_layers(attention_of=plain_attention), dialect=dialect()),
    "ministral3": Family(
        layers=plain_layers(attention_of=plain_attention), dialect=dialect(scales_queries=True)
    ),
    "mixtral": Family(
        layers=plain_layers(attention_of=plain_attention, mlp=mixtral_experts), dialect=dialect()
    ),
    "granite": Family(
        layers=plain_layers(),
        dialect=dialect(scales_embedding=True, scales_residual=True, logits_steps=1),
    ),
    "gemma": Family(
        layers=plain_layers(), dialect=dialect(norm="gemma", scales_embedding=True, scalars=1)
    ),
    "gemma2": Family(
        layers=plain_layers(types=lambda keys: keys.every(2), norms=GEMMA_NORMS),
        dialect=gemma2_dialect,
    ),
    "qwen2": Family(layers=plain_layers(types=qwen_types, attention_of=qwen2), dialect=dialect()),
    "qwen2_moe": Family(layers=qwen2_moe_layers, dialect=qwen2_moe_dialect),
    "qwen3": Family(layers=plain_layers(types=qwen_types, attention_of=qwen3), dialect=dialect()),
    "qwen3_moe": Family(layers=qwen3_moe_layers, dialect=dialect()),
    "qwen3_vl_text": Family(layers=plain_layers(attention_of=qwen3), dialect=dialect(grids=3)),
    "qwen3_vl_moe_text": Family(layers=qwen3_moe_layers, dialect=dialect(grids=3)),
    "qwen3_next": Family(
        layers=qwen_hybrid(qwen_mlp, fused=True),
        dialect=partial_dialect(0.25, norm="gemma", rotary="partial later"),
    ),
    "qwen3_5_text": Family(
        layers=qwen_hybrid(lambda keys, number: dense(keys, bias=False), fused=False),
        mtp=qwen_mtp(lambda keys: dense(keys, bias=False)),
        dialect=partial_dialect(0.25, norm="gemma", rotary="partial later", grids=3),
    ),
    "qwen3_5_moe_text": Family(
        layers=qwen_hybrid(lambda keys, number: qwen_experts(keys), fused=False),
        mtp=qwen_mtp(qwen_experts),
        dialect=partial_dialect(0.25, norm="gemma", rotary="partial later", grids=3),
    ),
    "qwen4_exp_text": Family(layers=qwen4_layers, outside=qwen4_outside),
    "llama4_text": Family(
        layers=llama4_layers,
        dialect=dialect(norm="llama4", order="before, kept", complex_angles=True, chunked=True),
    ),
    "gemma3_text": Family(
        layers=plain_layers(types=gemma3_types, attention_of=gemma_attention, norms=GEMMA_NORMS),
        dialect=gemma3_dialect,
    ),
    "gemma3n_text": Family(layers=gemma3n_layers, outside=gemma3n_outside, dialect=gemma3n_dialect),
    "gemma4_text": Family(
        layers=gemma4_layers,
        outside=lambda keys: Outside(more=per_layer_inputs(keys)[1]),
        unbuilt=gemma4_unbuilt,
        dialect=gemma4_dialect,
    ),
    "deepseek_v3": Family(
        layers=_DEEPSEEK,
        mtp=next_token_layers(_DEEPSEEK),
        float32=_BIAS,
        dialect=deepseek_dialect,
    ),
    "deepseek_v32": Family(
        layers=_DEEPSEEK_V32,
        mtp=next_token_layers(_DEEPSEEK_V32),
        dialect=indexed_dialect,
        float32=_BIAS,
        float32_beside_float16=("indexer.weights_proj",),
    ),
    "deepseek_v4": Family(
        layers=deepseek_v4_layers,
        outside=hyper_head,
        dialect=deepseek_v4_dialect,
        float32=(*_BIAS, *_V4_MIXING),
        float32_beside_float16=(
            "self_attn.compressor.gate_proj",
            "self_attn.compressor.kv_proj",
            "indexer.scorer.weights_proj",
            "indexer.gate_proj",
            "indexer.kv_proj",
        ),
        own_class=("self_attn.o_a_proj",),
    ),
    "mistral4": Family(
        layers=deepseek_layers(
            experts=lambda keys: routed_experts(keys, correction=None, routing="grouped softmax")
        ),
        dialect=lambda keys: replace(deepseek_dialect(keys), scales_queries=True),
    ),
    "mistral_large4_text": Family(
        layers=mistral_large4_layers,
        outside=mistral_large4_outside,
        float32=("mlp.gate.", "rotary_emb"),
        float32_beside_float16=("indexer.weights_proj",),
    ),
    "longcat_flash": Family(
        layers=longcat_layers,
        float32_beside_float16=("classifier",),
        dialect=lambda keys: replace(deepseek_dialect(keys), order="shortcut"),
    ),
    "minicpm3": Family(
        layers=_LATENT, dialect=lambda keys: replace(deepseek_dialect(keys), scalars=1)
    ),
    "youtu": Family(layers=_LATENT, dialect=deepseek_dialect),
    "glm_moe_dsa": Family(
        layers=glm_dsa_layers,
        mtp=next_token_layers(glm_dsa_layers, tables=False),
        dialect=indexed_dialect,
        float32=_BIAS,
        float32_beside_float16=("indexer.weights_proj",),
    ),
    "glm5_next_text": Family(
        layers=glm5_next_layers,
        float32=(*_BIAS, "conv1d", "A_log", "dt_bias", "hc.base", "hc.scale"),
    ),
    "glm4_moe": Family(
        layers=_GLM4_MOE,
        mtp=next_token_layers(_GLM4_MOE),
        float32=_BIAS,
        dialect=partial_dialect(0.5, rotary="partial later"),
    ),
    "solar_open": Family(
        layers=deepseek_layers(
            attention_of=lambda keys: (attention(keys, out_bias=False),), first=0
        ),
        float32=_BIAS,
        dialect=dialect(),
    ),
    "kimi_linear": Family(layers=kimi_linear_layers, outside=untied, dialect=dialect(rotary="")),
    "bailing_hybrid": Family(
        layers=bailing_layers,
        outside=untied,
        mtp=next_token_layers(bailing_layers),
        dialect=lambda keys: replace(deepseek_dialect(keys), rotary="interleaved"),
        float32=(*_BIAS, "conv1d", "A_log", "dt_bias"),
    ),
    "hy_v3": Family(
        layers=deepseek_layers(
            attention_of=lambda keys: (qwen3(keys, FULL),), experts=hy_v3_experts, first=1
        ),
        float32=_BIAS,
        dialect=dialect(heads_first=True),
    ),
    "hy_v4": Family(
        layers=hy_v4_layers,
        outside=hyper_head,
        float32=(*_BIAS, "lm_head", "sinks", "_hc.", "hc_head", "k_norm", "weights_proj"),
    ),
    "gpt_oss": Family(
        layers=plain_layers(
            types=lambda keys: keys.every(2), attention_of=gpt_oss_attention, mlp=gpt_oss_experts
        ),
        dialect=dialect(norm="wide", eager="sinks", rotary="chunked", half_angles=True),
        float32_beside_float16=("norm",),
    ),
    "minimax": Family(layers=minimax_layers, dialect=minimax_dialect),
    "minimax_m2": Family(
        layers=plain_layers(
            attention_of=minimax_m2_attention,
            mlp=lambda keys: mixtral_experts(
                keys, correction=("e_score_correction_bias", False), routing="sigmoid"
            ),
        ),
        dialect=minimax_m2_dialect,
    ),
    "minimax_m3_vl_text": Family(layers=minimax_m3_layers),
    "nemotron_h": Family(
        layers=nemotron_h_layers,
        outside=lambda keys: Outside(embedding="embeddings", norm="norm_f", ties=False),
        float32=_BIAS,
        dialect=nemotron_h_dialect,
    ),
    "nemotron-nas": Family(layers=nemotron_nas_layers),
    "granitemoehybrid": Family(layers=granite_hybrid_layers, dialect=granite_hybrid_dialect),
    "falcon_h1": Family(
        layers=falcon_h1_layers,
        outside=final_norm("final_layernorm"),
        dialect=dialect(
            order="state space beside",
            names=FEED_FORWARD_NORMS.names,
            scales_embedding=True,
            scales_keys=True,
            logits_steps=1,
        ),
    ),
    "jamba": Family(
        layers=jamba_layers,
        outside=final_norm("final_layernorm"),
        dialect=dialect(names=FEED_FORWARD_NORMS.names, rotary=""),
    ),
    "bamba": Family(
        layers=bamba_layers, outside=final_norm("final_layernorm"), dialect=bamba_dialect
    ),
    "mamba": Family(
        layers=mamba_layers(normed=False), outside=mamba_outside, dialect=mamba_dialect
    ),
    "falcon_mamba": Family(
        layers=mamba_layers(normed=True), outside=mamba_outside, dialect=mamba_dialect
    ),
    "mamba2": Family(layers=mamba2_layers, outside=mamba_outside, dialect=mamba_dialect),
    "zamba2": Family(layers=zamba2_layers, outside=zamba2_outside, dialect=zamba2_dialect),
    "lfm2": Family(layers=lfm2_layers, outside=final_norm("embedding_norm"), dialect=LFM2),
    "lfm2_moe": Family(
        layers=lfm2_layers,
        outside=final_norm("embedding_norm"),
        float32=("expert_bias",),
        dialect=LFM2,
    ),
    "lfm3": Family(
        layers=lfm3_layers,
        outside=final_norm("embedding_norm"),
        dialect=dialect(
            order="around",
            names=("operator_norm", "post_operator_norm", "ffn_norm", "post_ffn_norm"),
            activation="silu",
            rotary="wide halves",
            wide_angles=True,
            rotary_kinds=2,
        ),
    ),
    "phi3": Family(
        layers=plain_layers(
            attention_of=phi3_attention, mlp=lambda keys: dense(keys, fused="gate_up_proj")
        ),
        dialect=dialect(rotary="partial"),
    ),
    "phimoe": Family(
        layers=phimoe_layers,
        outside=lambda keys: Outside(norm_bias=True, head_bias=keys.has("lm_head_bias")),
        dialect=dialect(new_frequencies=True),
    ),
    "olmo2": Family(
        layers=plain_layers(attention_of=olmo_attention, norms=POST_NORMS), dialect=OLMO
    ),
    "olmo3": Family(
        layers=plain_layers(
            types=lambda keys: keys.every(4), attention_of=olmo_attention, norms=POST_NORMS
        ),
        dialect=lambda keys: replace(OLMO(keys), rotary_kinds=2),
    ),
    "olmo_hybrid": Family(
        layers=olmo_hybrid_layers, float32=("A_log",), dialect=olmo_hybrid_dialect
    ),
    "cohere2": Family(
        layers=plain_layers(
            types=cohere2_types, attention_of=cohere2_attention, norms=Norms(("input_layernorm",))
        ),
        dialect=dialect(norm="cohere", order="beside", rotary="pairs", logits_steps=1),
    ),
    "cohere2_moe": Family(layers=cohere2_moe_layers, dialect=cohere2_moe_dialect),
    "exaone4": Family(
        layers=plain_layers(types=exaone4_types, attention_of=exaone4_attention, norms=POST_NORMS),
        dialect=dialect(order="behind", names=POST_NORMS.names, heads_first=True),
    ),
    "ernie4_5_moe": Family(
        layers=ernie_layers,
        outside=lambda keys: Outside(head_bias=keys.has("use_bias")),
        float32=("mlp.gate.",),
        dialect=dialect(rotary="wide pairs", wide_angles=True),
    ),
    "mimo_v2_flash": Family(
        layers=mimo_layers,
        float32=_BIAS,
        dialect=partial_dialect(
            0.334, eager="max", rotary="partial later", rotary_kinds=2, scales_values=True
        ),
    ),
    "seed_oss": Family(layers=plain_layers(attention_of=seed_oss_attention), dialect=dialect()),
    "smollm3": Family(layers=smollm3_layers, dialect=dialect()),
    "muse_spark_text": Family(
        layers=muse_spark_layers, float32=(*_BIAS, "residual_gate", "mlp.gate.")
    ),
    "inkling_text": Family(
        layers=inkling_layers,
        outside=lambda keys: Outside(
            ties=False, more=(Extra(tensors=(("embed_tokens.embed_norm", (keys.hidden,)),)),)
        ),
        float32=(*_BIAS, "gate.global_scale", "sconv"),
    ),
    "bitnet": Family(
        layers=plain_layers(attention_of=bitnet_attention, mlp=bitnet_mlp), dialect=dialect()
    ),
    "afmoe": Family(
        layers=afmoe_layers,
        float32_beside_float16=("norm", "expert_bias"),
        dialect=afmoe_dialect,
    ),
    "step3p5": Family(layers=step_layers, dialect=step_dialect),
}

"""A `model_type` of a language model to how it is read. A new one is a row here."""

SAME_AS = {
    "kimi_k2": "deepseek_v3",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
    "llama4": "llama4_text",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "mistral3": "mistral",
    "mistral_large4": "mistral_large4_text",
    "glm5_next": "glm5_next_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "muse_spark": "muse_spark_text",
    "inkling": "inkling_text",
    "kimi_k25": "deepseek_v3",
    "step3p7": "step3p5",
}

"""Other names of a `model_type`, such as that of a multimodal model whose keys are not apart."""
