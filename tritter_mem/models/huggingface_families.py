"""Families by their `model_type`, which four files list in tables.

The functions follow the modules and configuration classes of transformers 5.23.0, and for models
that only ship their own code, that code (`nemotron-nas`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tritter_mem.models.family_parts import Family


def find_family(model_type: str) -> Family | None:
    """How a `model_type` of a language model is read; None: it is unknown."""
    return next((table[model_type] for table in _tables() if model_type in table), None)


def all_families() -> dict[str, Family]:
    """Every `model_type` of a language model to how it is read."""
    return {name: family for table in _tables() for name, family in table.items()}


def _tables() -> Iterator[Mapping[str, Family]]:
    """The table of each file. To import all of them takes as long as most plans."""
    from tritter_mem.models import attention_families

    yield attention_families.FAMILIES
    from tritter_mem.models import gemma_families

    yield gemma_families.FAMILIES
    from tritter_mem.models import latent_families

    yield latent_families.FAMILIES
    from tritter_mem.models import hybrid_families

    yield hybrid_families.FAMILIES


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
