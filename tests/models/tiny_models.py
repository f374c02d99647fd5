"""Tiny configurations of every family, and the modules that transformers builds from them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tritter_mem.models.huggingface_families import all_families

WITHOUT_CLASS = {"nemotron-nas"}
"""Families that ship their own code."""
BUILT = tuple(name for name in all_families() if name not in WITHOUT_CLASS)
PREFILL, DECODED, BATCH = 9, 3, 2


def sizes(rng: random.Random) -> dict[str, Any]:
    """Widths by key; a class takes those that it has."""
    kv_heads = rng.choice((1, 2))
    head_dim = 8 * rng.choice((1, 2, 3))
    return {
        "hidden_size": 16 * rng.choice((2, 3, 4)),
        "intermediate_size": rng.choice((40, 56)),
        "num_hidden_layers": rng.choice((4, 5)),
        "num_attention_heads": kv_heads * rng.choice((1, 2)),
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": rng.choice((96, 130)),
        "moe_intermediate_size": rng.choice((24, 32)),
        "shared_expert_intermediate_size": rng.choice((8, 24)),
        "q_lora_rank": rng.choice((12, 20)),
        "kv_lora_rank": rng.choice((10, 14)),
        "qk_nope_head_dim": rng.choice((8, 16)),
        "qk_rope_head_dim": 8,
        "v_head_dim": rng.choice((6, 12)),
        "index_head_dim": 16,
        "index_n_heads": 2,
        "index_topk": 4,
        "num_experts": 4,
        "n_routed_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_experts_per_token": 2,
        "n_group": 1,
        "topk_group": 1,
        "num_expert_group": 1,
        "first_k_dense_replace": 1,
        "sliding_window": rng.choice((4, 6, 64)),
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": rng.choice((8, 12)),
        "linear_value_head_dim": rng.choice((8, 12)),
        "linear_num_heads": 3,
        "linear_head_dim": 8,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_nextn_predict_layers": 0,
        "attention_bias": rng.choice((True, False)),
        "tie_word_embeddings": rng.choice((True, False)),
    }


LATENT_TYPES = (
    "deepseek_v3", "deepseek_v32", "mistral4", "mistral_large4_text", "longcat_flash", "minicpm3",
    "youtu", "glm_moe_dsa", "glm5_next_text", "kimi_linear", "hy_v4",
)  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 2}


def special(model_type: str, rng: random.Random) -> dict[str, Any]:
    """What a family needs beside the plain sizes; None leaves a key out."""
    hidden = 32
    table: dict[str, dict[str, Any]] = {
        "bamba": {
            "hidden_size": hidden,
            "attn_layer_indices": [1, 3],
            "head_dim": None,
            **MAMBA,
            "num_attention_heads": 4,
        },
        "granitemoehybrid": {
            "hidden_size": hidden,
            **MAMBA,
            "num_attention_heads": 2,
            "shared_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "head_dim": None,
        },
        "falcon_h1": {
            "hidden_size": hidden,
            **MAMBA,
            "mamba_d_ssm": 64,
            "mamba_rms_norm": rng.choice((True, False)),
        },
        "jamba": {
            "hidden_size": hidden,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 3,
            "head_dim": None,
        },
        "nemotron_h": {
            "hybrid_override_pattern": "M*E-M",
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "moe_shared_expert_intermediate_size": 24,
            "moe_latent_size": rng.choice((None, 16)),
            "num_hidden_layers": None,
        },
        "mamba": {"hidden_size": hidden, "state_size": 4, "time_step_rank": 3},
        "falcon_mamba": {"hidden_size": hidden, "state_size": 4},
        "mamba2": {
            "hidden_size": hidden,
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 2,
        },
        "zamba2": {
            "hidden_size": hidden,
            "n_mamba_heads": 4,
            "mamba_d_state": 8,
            "mamba_ngroups": 2,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "num_hidden_layers": 4,
            "adapter_rank": 4,
            "num_attention_heads": 2,
            "head_dim": None,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        "lfm2": {
            "full_attn_idxs": [1, 3],
            "hidden_size": hidden,
            "num_attention_heads": 4,
            "head_dim": None,
        },
        "lfm2_moe": {
            "layer_types": ["conv", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "num_dense_layers": 1,
            "hidden_size": hidden,
            "num_attention_heads": 4,
            "head_dim": None,
        },
        "llama4_text": {
            "attention_chunk_size": rng.choice((4, 64)),
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
            "num_experts_per_tok": 1,
        },
        "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
        "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
        "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 3},
        "qwen3_moe": {"mlp_only_layers": [1]},
        "gemma3n_text": {
            "num_kv_shared_layers": 5,
            "num_hidden_layers": 10,
            "altup_num_inputs": 3,
            "vocab_size_per_layer_input": 100,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "intermediate_size": 40,
        },
        "gemma4_text": {
            "num_kv_shared_layers": 6,
            "num_hidden_layers": 12,
            "vocab_size_per_layer_input": 100,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 32,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "top_k_experts": 2,
            "use_double_wide_mlp": True,
        },
        "gemma2": {"query_pre_attn_scalar": 8},
        "deepseek_v4": {
            "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
            "num_hash_layers": 2,
            "o_groups": 2,
            "o_lora_rank": 6,
            "num_attention_heads": 4,
            "head_dim": 16,
            "hc_mult": 2,
            "num_key_value_heads": 1,
            "qk_rope_head_dim": None,
            "partial_rotary_factor": 0.5,
            "layer_types": [
                "heavily_compressed_attention",
                "compressed_sparse_attention",
                "sliding_attention",
                "compressed_sparse_attention",
            ],
            "num_hidden_layers": 4,
            "attention_bias": False,
            "intermediate_size": None,
        },
        "qwen4_exp_text": {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 32,
            "indexer_budget": 8,
            "indexer_compress_ratio": 4,
            "hc_count": 2,
            "hc_lowrank": 6,
            "num_key_value_heads": 1,
        },
        "mistral_large4_text": {
            "num_hidden_layers": 4,
            "kv_source_layers": [0, 0, 2, 3],
            "indexer_types": ["full", "shared", "full", "shared"],
        },
        "glm_moe_dsa": {"index_topk_freq": 2, "attention_bias": False},
        "glm5_next_text": {
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "qk_rope_head_dim": 0,
            "hc_mult": 2,
            "index_kpool": 2,
            "attention_bias": False,
        },
        "kimi_linear": {
            "linear_attn_config": {
                "head_dim": 8,
                "num_heads": 3,
                "short_conv_kernel_size": 4,
                "full_attn_layers": [2, 4],
                "kda_layers": [1, 3],
            },
            "num_hidden_layers": 4,
        },
        "bailing_hybrid": {
            "layer_group_size": 2,
            "num_hidden_layers": 4,
            "num_key_value_heads": None,
        },
        "longcat_flash": {
            "num_layers": 2,
            "num_hidden_layers": None,
            "ffn_hidden_size": 40,
            "zero_expert_num": 2,
            "expert_ffn_hidden_size": 24,
            "moe_topk": 2,
            "intermediate_size": None,
            "moe_intermediate_size": None,
            "num_experts_per_tok": None,
            "attention_bias": False,
            "head_dim": 8,
        },
        "minimax": {"num_hidden_layers": 4, "block_size": 4},
        "minimax_m3_vl_text": {
            "num_hidden_layers": 4,
            "dense_intermediate_size": 48,
            "shared_intermediate_size": 24,
            "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
            "index_block_size": 4,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "index_n_heads": 1,
            "num_key_value_heads": 1,
            "rotary_dim": 8,
            "index_topk_blocks": 2,
        },
        "mimo_v2_flash": {
            "num_key_value_heads": 1,
            "num_attention_heads": 4,
            "head_dim": 16,
            "num_hidden_layers": 6,
        },
        "phi3": {"sliding_window": rng.choice((None, 6)), "head_dim": None, "hidden_size": hidden},
        "mistral": {"sliding_window": rng.choice((None, 6))},
        "olmo_hybrid": {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "head_dim": None,
            "hidden_size": hidden,
        },
        "cohere2": {"head_dim": None, "hidden_size": hidden},
        "cohere2_moe": {"num_shared_experts": 1, "prefix_dense_intermediate_size": 40},
        "ernie4_5_moe": {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 2,
            "moe_layer_end_index": 2,
            "use_bias": rng.choice((True, False)),
            "num_experts": None,
            "num_experts_per_tok": None,
            "num_local_experts": None,
        },
        "muse_spark_text": {"moe_hidden_size": 16},
        "inkling_text": {
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 1,
            "swa_head_dim": 8,
            "d_rel": 4,
            "rel_extent": 16,
            "sliding_window_size": rng.choice((4, 64)),
            "dense_mlp_idx": 1,
            "num_hidden_layers": 6,
            "sliding_window": None,
            "attention_bias": None,
            "tie_word_embeddings": None,
        },
        "afmoe": {"num_dense_layers": 1, "num_shared_experts": 1, "attention_bias": False},
        "step3p5": {
            "num_hidden_layers": 4,
            "share_expert_dim": 24,
            "num_sliding_attention_heads": 4,
            "num_key_value_heads": 1,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
        "smollm3": {"use_sliding_window": True},
        "bitnet": {"hidden_size": hidden, "num_attention_heads": 4, "head_dim": None},
    }
    plain: dict[str, Any] = {}
    if model_type in LATENT_TYPES:
        plain = {"head_dim": None, "num_key_value_heads": None}
    return plain | table.get(model_type, {})


def config_class(model_type: str) -> Any:
    """The configuration class of a language model."""
    mapping = pytest.importorskip("transformers").CONFIG_MAPPING
    for name in (model_type, model_type.removesuffix("_text"), "step3p7"):
        if name not in mapping:
            continue
        found = mapping[name]
        for candidate in (found, *found.sub_configs.values()):
            if getattr(candidate, "model_type", None) == model_type:
                return candidate
    pytest.skip(f"this transformers has no {model_type}")


def known_keys(model_type: str) -> set[str]:
    """Keys that a family's class takes."""
    own = config_class(model_type)
    return set(own.__dataclass_fields__) | set(own.attribute_map)


def tiny_config(model_type: str, seed: int) -> dict[str, Any]:
    """A configuration as a file would have it: what is given, and no derived keys."""
    rng = random.Random(f"{model_type} {seed}")  # noqa: S311
    known = known_keys(model_type)
    given = {key: value for key, value in sizes(rng).items() if key in known}
    given |= special(model_type, rng)
    return {"model_type": model_type} | {k: v for k, v in given.items() if v is not None}


def config_of(values: dict[str, Any]) -> Any:
    """The configuration object of such a file."""
    given = {key: value for key, value in values.items() if key != "model_type"}
    return config_class(values["model_type"])(**given)


def module_class(config: Any) -> Any:
    """The class of a causal language model, else of the model without its output projection."""
    from transformers.models.auto import modeling_auto

    if config.model_type == "step3p5":
        from transformers.models.step3p7 import modeling_step3p7

        return modeling_step3p7.Step3p7TextModel
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return causal or modeling_auto.MODEL_MAPPING[type(config)]


def lacks_head(module: Any) -> bool:
    """Whether a module is a model without its output projection."""
    return module.get_output_embeddings() is None


def tensors_of(cache: Any) -> list[Any]:
    """Every floating-point tensor that a cache holds, once."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [vars(layer) for layer in cache.layers]
    waiting.append(getattr(cache, "linear_cache", []))
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif hasattr(value, "nbytes") and value.dtype.is_floating_point:
            found[id(value)] = value
    return list(found.values())
