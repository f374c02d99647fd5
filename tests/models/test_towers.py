"""Towers that read images have the parameters of transformers' own modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tritter_mem.models.huggingface_keys import Keys
from tritter_mem.models.huggingface_towers import tower_weights

pytest.importorskip("transformers")
import torch


def siglip(values: dict[str, Any]) -> Any:
    from transformers.models.siglip import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**values))


def qwen(values: dict[str, Any]) -> Any:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    return Qwen3VLVisionModel(Qwen3VLVisionConfig(**values))


def llama4(values: dict[str, Any]) -> Any:
    from transformers.models.llama4.configuration_llama4 import Llama4VisionConfig
    from transformers.models.llama4.modeling_llama4 import Llama4VisionModel

    return Llama4VisionModel(Llama4VisionConfig(**values))


def pixtral(values: dict[str, Any]) -> Any:
    from transformers.models.pixtral import PixtralVisionConfig, PixtralVisionModel

    return PixtralVisionModel(PixtralVisionConfig(**values))


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
TOWERS: tuple[tuple[str, Callable[[dict[str, Any]], Any], dict[str, Any]], ...] = (
    ("gemma3", siglip, {**WIDTHS, "vision_use_head": False}),
    ("gemma3", siglip, {**WIDTHS, **OTHERS, "num_hidden_layers": 1, "vision_use_head": True}),
    ("qwen3_vl", qwen, QWEN),
    ("qwen3_vl_moe", qwen, {**QWEN, "depth": 1, "spatial_merge_size": 1, "patch_size": 7,
                            "deepstack_visual_indexes": []}),
    ("llama4", llama4, WIDTHS | SHUFFLED),
    ("llama4", llama4, WIDTHS | OTHERS | SHUFFLED | {"intermediate_size": 512}),
    ("mistral3", pixtral, WIDTHS),
    ("mistral3", pixtral, {**WIDTHS, **OTHERS, "num_hidden_layers": 2}),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "build", "values"), TOWERS)
def test_a_tower_has_the_parameters_of_its_module(
    kind: str, build: Callable[[dict[str, Any]], Any], values: dict[str, Any]
) -> None:
    with torch.device("meta"):
        module = build(values)
    weights, missing = tower_weights(
        {"model_type": kind, "vision_config": values}, Keys({"hidden_size": 80}, "llama")
    )
    own = [weight for weight in weights if not weight.name.startswith("multi_modal_projector")]
    assert sum(weight.elements for weight in own) == sum(p.numel() for p in module.parameters())
    assert missing == ()


def test_a_tower_that_is_not_known_is_said() -> None:
    weights, missing = tower_weights({"model_type": "new", "vision_config": {}}, Keys({}, "llama"))
    assert weights == ()
    assert missing == ("vision_config: the weights of this tower are not counted",)
