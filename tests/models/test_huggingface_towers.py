"""Towers that read images have the parameters of transformers' own modules."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tritter_mem.models.huggingface_keys import Keys
from tritter_mem.models.huggingface_towers import DEFAULTS, tower_weights

pytest.importorskip("transformers")
import torch

Build = Callable[[dict[str, Any]], tuple[Any, ...]]
HIDDEN = 80
LANGUAGE = SimpleNamespace(hidden_size=HIDDEN, rms_norm_eps=1e-6)


def together(vision: Any, **more: Any) -> Any:
    """The configuration of a whole model, as far as its projection reads it."""
    return SimpleNamespace(vision_config=vision, text_config=LANGUAGE, **more)


def siglip(values: dict[str, Any]) -> tuple[Any, ...]:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
    from transformers.models.siglip import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(**values)
    whole = together(config, mm_tokens_per_image=4)
    return SiglipVisionModel(config), Gemma3MultiModalProjector(whole)


def qwen(values: dict[str, Any]) -> tuple[Any, ...]:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    return (Qwen3VLVisionModel(Qwen3VLVisionConfig(**values)),)


def llama4(values: dict[str, Any]) -> tuple[Any, ...]:
    from transformers.models.llama4.configuration_llama4 import Llama4VisionConfig
    from transformers.models.llama4.modeling_llama4 import (
        Llama4MultiModalProjector,
        Llama4VisionModel,
    )

    config = Llama4VisionConfig(**values)
    return Llama4VisionModel(config), Llama4MultiModalProjector(together(config))


def pixtral(values: dict[str, Any]) -> tuple[Any, ...]:
    from transformers.models.mistral3.modeling_mistral3 import Mistral3MultiModalProjector
    from transformers.models.pixtral import PixtralVisionConfig, PixtralVisionModel

    config = PixtralVisionConfig(**values)
    whole = together(config, spatial_merge_size=2, vision_feature_layer=-1,
                     projector_hidden_act="gelu", multimodal_projector_bias=False)  # fmt: skip
    return PixtralVisionModel(config), Mistral3MultiModalProjector(whole)


def gemma4(values: dict[str, Any]) -> tuple[Any, ...]:
    from transformers.models.gemma4 import Gemma4VisionConfig, Gemma4VisionModel
    from transformers.models.gemma4.modeling_gemma4 import Gemma4MultimodalEmbedder

    config = Gemma4VisionConfig(**values)
    return Gemma4VisionModel(config), Gemma4MultimodalEmbedder(config, LANGUAGE)


def gemma4_audio(values: dict[str, Any]) -> tuple[Any, ...]:
    from transformers.models.gemma4 import Gemma4AudioConfig, Gemma4AudioModel
    from transformers.models.gemma4.modeling_gemma4 import Gemma4MultimodalEmbedder

    config = Gemma4AudioConfig(**values)
    return Gemma4AudioModel(config), Gemma4MultimodalEmbedder(config, LANGUAGE)


def kimi(values: dict[str, Any]) -> tuple[Any, ...]:
    from transformers.models.kimi_k25 import Kimi_K25VisionConfig, Kimi_K25VisionModel
    from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25MultimodalProjection

    names = {"init_pos_emb_height": "pos_emb_height", "init_pos_emb_width": "pos_emb_width"}
    own = {names.get(key, key.removeprefix("vt_")): value for key, value in values.items()}
    config = Kimi_K25VisionConfig(**own)
    whole = together(config, projection_hidden_size=config.hidden_size,
                     projection_layer_norm_eps=1e-5)  # fmt: skip
    return Kimi_K25VisionModel(config), Kimi_K25MultimodalProjection(whole)


WIDTHS = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_channels": 3, "image_size": 56, "patch_size": 14,
}  # fmt: skip
SHUFFLED = {
    "intermediate_size": 256, "vision_output_dim": 48, "projector_input_dim": 32,
    "projector_output_dim": 48, "pixel_shuffle_ratio": 0.5,
}  # fmt: skip
QWEN = {
    "hidden_size": 64, "intermediate_size": 96, "depth": 3, "num_heads": 4, "in_channels": 3,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 80,
    "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2],
}  # fmt: skip
OTHERS = {"hidden_size": 128, "image_size": 84, "patch_size": 7}
GEMMA4 = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 24, "patch_size": 7, "position_embedding_size": 50,
    "standardize": False,
}  # fmt: skip
SOUND = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "conv_kernel_size": 5,
    "output_proj_dims": 48,
}  # fmt: skip
KIMI = {
    "vt_hidden_size": 64, "vt_intermediate_size": 96, "vt_num_hidden_layers": 3,
    "vt_num_attention_heads": 4, "patch_size": 14, "init_pos_emb_height": 8,
    "init_pos_emb_width": 6, "merge_kernel_size": [3, 2],
}  # fmt: skip
TOWERS: tuple[tuple[str, Build, dict[str, Any]], ...] = (
    ("gemma3", siglip, {**WIDTHS, "vision_use_head": False}),
    ("gemma3", siglip, {**WIDTHS, **OTHERS, "num_hidden_layers": 1, "vision_use_head": True}),
    ("qwen3_vl", qwen, QWEN),
    ("qwen3_vl_moe", qwen, {**QWEN, "depth": 1, "spatial_merge_size": 1, "patch_size": 7,
                            "deepstack_visual_indexes": []}),
    ("llama4", llama4, WIDTHS | SHUFFLED),
    ("llama4", llama4, WIDTHS | OTHERS | SHUFFLED | {"intermediate_size": 512}),
    ("mistral3", pixtral, WIDTHS),
    ("mistral3", pixtral, {**WIDTHS, **OTHERS, "num_hidden_layers": 2}),
    ("gemma4", gemma4, GEMMA4),
    ("gemma4", gemma4, {**GEMMA4, "num_hidden_layers": 1, "num_key_value_heads": 4}),
    ("gemma4", gemma4_audio, SOUND),
    ("gemma4", gemma4_audio, {**SOUND, "subsampling_conv_channels": [64, 24],
                              "conv_kernel_size": 3, "num_hidden_layers": 1}),
    ("kimi_k25", kimi, KIMI),
    ("kimi_k25", kimi, {key: value for key, value in KIMI.items() if key != "merge_kernel_size"}),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "build", "values"), TOWERS)
def test_a_tower_and_its_projection_have_the_parameters_of_their_modules(
    kind: str, build: Build, values: dict[str, Any]
) -> None:
    with torch.device("meta"):
        modules = build(values)
    section = "audio_config" if build is gemma4_audio else "vision_config"
    weights, missing = tower_weights(
        {"model_type": kind, section: values}, Keys({"hidden_size": HIDDEN}, "llama")
    )
    parameters = [sum(p.numel() for p in module.parameters()) for module in modules]
    assert sum(weight.elements for weight in weights) == sum(parameters)
    assert missing == ()


def test_gemma4_scales_what_its_tower_gives_by_buffers() -> None:
    values = {**GEMMA4, "standardize": True}
    with torch.device("meta"):
        tower, _ = gemma4(values)
    weights, _ = tower_weights(
        {"model_type": "gemma4", "vision_config": values}, Keys({"hidden_size": HIDDEN}, "llama")
    )
    found = [weight.shape for weight in weights if not weight.is_parameter]
    assert found == [tower.std_bias.shape, tower.std_scale.shape]


def test_absent_keys_of_a_section_are_those_that_transformers_takes() -> None:
    """The class of a whole model has others, for a file without any section."""
    from transformers import Gemma3Config, Llama4Config, Mistral3Config

    classes = {"gemma3": Gemma3Config, "mistral3": Mistral3Config, "llama4": Llama4Config}
    assert classes.keys() == DEFAULTS.keys()
    for kind, values in DEFAULTS.items():
        config = classes[kind](vision_config={"initializer_range": 0.03}).vision_config
        own = {key: getattr(config, key, True) for key in values}  # vision_use_head is optional
        assert own == values


def test_a_tower_that_is_not_known_is_said() -> None:
    weights, missing = tower_weights({"model_type": "new", "vision_config": {}}, Keys({}, "llama"))
    assert weights == ()
    assert missing == ("vision_config: the weights of this tower are not counted",)
