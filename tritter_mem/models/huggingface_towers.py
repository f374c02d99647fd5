"""Towers: what a multimodal model reads images or sound with, and its projection from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tritter_mem.models.architecture import Weight
from tritter_mem.models.huggingface_keys import MOST_LAYERS, Keys
from tritter_mem.models.transformers_blocks import layer_norm, linear, vector

Tower = Callable[[Keys, Keys], Iterator[Weight]]
"""Weights, from the keys of the tower and of the language model."""


def affine(name: str, outputs: int, inputs: int) -> Iterator[Weight]:
    """A linear layer with a bias."""
    yield from linear(name, outputs, inputs, True)


def table(name: str, *shape: int) -> Weight:
    """An embedding, or the weight of a convolution over patches."""
    return Weight(name=name, shape=shape)


def qwen(keys: Keys, language: Keys) -> Iterator[Weight]:
    """Qwen3-VL's: a fused projection of queries, keys and values, and mergers of patches."""
    del language
    width, inner = keys.hidden, keys.number("intermediate_size")
    patch = keys.number("patch_size")
    yield table(
        "visual.patch_embed.proj",
        width, keys.number("in_channels"), keys.number("temporal_patch_size"), patch, patch,
    )  # fmt: skip
    yield vector("visual.patch_embed.proj.bias", width)
    yield table("visual.pos_embed", keys.number("num_position_embeddings"), width)
    for number in range(keys.number("depth", MOST_LAYERS)):
        name = f"visual.blocks.{number}"
        yield from layer_norm(f"{name}.norm1", width, True)
        yield from layer_norm(f"{name}.norm2", width, True)
        yield from affine(f"{name}.attn.qkv", 3 * width, width)
        yield from affine(f"{name}.attn.proj", width, width)
        yield from affine(f"{name}.mlp.linear_fc1", inner, width)
        yield from affine(f"{name}.mlp.linear_fc2", width, inner)
    merged = width * keys.number("spatial_merge_size") ** 2
    deep = keys.list_of("deepstack_visual_indexes") or []
    norms = {"merger": width} | {f"deepstack_merger_list.{n}": merged for n in range(len(deep))}
    for name, normed in norms.items():
        yield from layer_norm(f"visual.{name}.norm", normed, True)
        yield from affine(f"visual.{name}.linear_fc1", merged, merged)
        yield from affine(f"visual.{name}.linear_fc2", keys.number("out_hidden_size"), merged)


def encoder_layers(
    prefix: str, keys: Keys, layers: int, width: int, inner: int
) -> Iterator[Weight]:
    """Layers of a plain vision transformer, all with biases."""
    del keys
    for number in range(layers):
        name = f"{prefix}.{number}"
        yield from layer_norm(f"{name}.norm1", width, True)
        yield from layer_norm(f"{name}.norm2", width, True)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from affine(f"{name}.attn.{part}", width, width)
        yield from affine(f"{name}.mlp.fc1", inner, width)
        yield from affine(f"{name}.mlp.fc2", width, inner)


def llama4(keys: Keys, language: Keys) -> Iterator[Weight]:
    """Llama 4's: a class embedding, and an adapter that shuffles pixels into channels."""
    width, inner = keys.hidden, keys.number("intermediate_size")
    patch, layers = keys.number("patch_size"), keys.layers
    patches = (keys.number("image_size") // patch) ** 2
    yield vector("vision_model.class_embedding", width)
    yield table("vision_model.positional_embedding_vlm", patches + 1, width)
    yield table("vision_model.patch_embedding", width, keys.number("num_channels") * patch**2)
    yield from layer_norm("vision_model.layernorm_pre", width, True)
    yield from layer_norm("vision_model.layernorm_post", width, True)
    yield from encoder_layers("vision_model.model.layers", keys, layers, width, inner)
    out = keys.number("projector_output_dim")
    adapter = "vision_model.vision_adapter.mlp"
    yield from linear(f"{adapter}.fc1", keys.number("projector_input_dim"), inner)
    yield from linear(f"{adapter}.fc2", out, out)
    projected = keys.number("vision_output_dim")
    yield from linear("multi_modal_projector.linear_1", language.hidden, projected)


def siglip(keys: Keys, language: Keys) -> Iterator[Weight]:
    """SigLIP with its pooling head unless that is switched off, and Gemma 3's projection."""
    width, inner = keys.hidden, keys.number("intermediate_size")
    patch, layers = keys.number("patch_size"), keys.layers
    yield table("vision_tower.patch_embedding", width, keys.number("num_channels"), patch, patch)
    yield vector("vision_tower.patch_embedding.bias", width)
    patches = (keys.number("image_size") // patch) ** 2
    yield table("vision_tower.position_embedding", patches, width)
    yield from encoder_layers("vision_tower.encoder.layers", keys, layers, width, inner)
    yield from layer_norm("vision_tower.post_layernorm", width, True)
    if keys.has("vision_use_head"):
        yield vector("vision_tower.head.probe", width)
        yield from affine("vision_tower.head.attention.in_proj", 3 * width, width)
        yield from affine("vision_tower.head.attention.out_proj", width, width)
        yield from layer_norm("vision_tower.head.layernorm", width, True)
        yield from affine("vision_tower.head.mlp.fc1", inner, width)
        yield from affine("vision_tower.head.mlp.fc2", width, inner)
    yield table("multi_modal_projector.mm_input_projection_weight", width, language.hidden)
    yield vector("multi_modal_projector.mm_soft_emb_norm", width)


def gemma4(keys: Keys, language: Keys) -> Iterator[Weight]:
    """Gemma 4's: gated MLPs and norms of queries and keys."""
    width, inner = keys.hidden, keys.number("intermediate_size")
    head = keys.number("head_dim")
    queries, key_width = keys.heads * head, keys.kv_heads * head
    positions, patch = keys.number("position_embedding_size"), keys.number("patch_size")
    yield table("vision_tower.patch_embedder.position_embedding_table", 2, positions, width)
    yield from linear("vision_tower.patch_embedder.input_proj", width, 3 * patch**2)
    for number in range(keys.layers):
        name = f"vision_tower.encoder.layers.{number}"
        yield from linear(f"{name}.self_attn.q_proj", queries, width)
        yield from linear(f"{name}.self_attn.k_proj", key_width, width)
        yield from linear(f"{name}.self_attn.v_proj", key_width, width)
        yield from linear(f"{name}.self_attn.o_proj", width, queries)
        yield vector(f"{name}.self_attn.q_norm", head)
        yield vector(f"{name}.self_attn.k_norm", head)
        yield from gated(name, inner, width, "mlp")
        for norm in range(4):
            yield vector(f"{name}.norm{norm}", width)
    if keys.has("standardize"):
        for part in ("std_bias", "std_scale"):
            yield Weight(name=f"vision_tower.{part}", shape=(width,), is_parameter=False)
    yield from linear("embed_vision.embedding_projection", language.hidden, width)


def gemma4_audio(keys: Keys, language: Keys) -> Iterator[Weight]:
    """Gemma 4's for sound: two convolutions, then layers of a Conformer."""
    width, head = keys.hidden, keys.hidden_per_head
    first, second = (keys.numbers("subsampling_conv_channels", 2) or (128, 32))[:2]
    start = "audio_tower.subsample_conv_projection"
    yield table(f"{start}.layer0.conv", first, 1, 3, 3)
    yield vector(f"{start}.layer0.norm", first)
    yield table(f"{start}.layer1.conv", second, first, 3, 3)
    yield vector(f"{start}.layer1.norm", second)
    yield from linear(f"{start}.input_proj_linear", width, first // 4 * second)
    for number in range(keys.layers):
        name = f"audio_tower.layers.{number}"
        for part in ("feed_forward1", "feed_forward2"):
            yield from linear(f"{name}.{part}.ffw_layer_1", 4 * width, width)
            yield from linear(f"{name}.{part}.ffw_layer_2", width, 4 * width)
        for part in ("q_proj", "k_proj", "v_proj", "post", "relative_k_proj"):
            yield from linear(f"{name}.self_attn.{part}", width, width)
        yield vector(f"{name}.self_attn.per_dim_scale", head)
        yield from linear(f"{name}.lconv1d.linear_start", 2 * width, width)
        yield from linear(f"{name}.lconv1d.linear_end", width, width)
        yield table(f"{name}.lconv1d.depthwise_conv1d", width, 1, keys.number("conv_kernel_size"))
        for norm in range(9):
            yield vector(f"{name}.norm{norm}", width)
    out = keys.number("output_proj_dims")
    yield from affine("audio_tower.output_proj", out, width)
    yield from linear("embed_audio.embedding_projection", language.hidden, out)


def gated(name: str, inner: int, width: int, module: str) -> Iterator[Weight]:
    """A gated MLP without biases."""
    yield from linear(f"{name}.{module}.gate_proj", inner, width)
    yield from linear(f"{name}.{module}.up_proj", inner, width)
    yield from linear(f"{name}.{module}.down_proj", width, inner)


def pixtral(keys: Keys, language: Keys) -> Iterator[Weight]:
    """Pixtral's, with Mistral 3's merger of patches."""
    width, inner = keys.hidden, keys.number("intermediate_size")
    patch, merged = keys.number("patch_size"), 4 * width
    yield table("vision_tower.patch_conv", width, keys.number("num_channels"), patch, patch)
    yield vector("vision_tower.ln_pre", width)
    for number in range(keys.layers):
        name = f"vision_tower.transformer.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield from linear(f"{name}.attention.{part}", width, width)
        yield from gated(name, inner, width, "feed_forward")
        yield vector(f"{name}.attention_norm", width)
        yield vector(f"{name}.ffn_norm", width)
    yield vector("multi_modal_projector.norm", width)
    yield from linear("multi_modal_projector.patch_merger.merging_layer", width, merged)
    yield from linear("multi_modal_projector.linear_1", language.hidden, width)
    yield from linear("multi_modal_projector.linear_2", language.hidden, language.hidden)


def kimi(keys: Keys, language: Keys) -> Iterator[Weight]:
    """Kimi K2.5's, whose keys begin with `vt_`."""
    width, inner = keys.number("vt_hidden_size"), keys.number("vt_intermediate_size")
    layers = keys.number("vt_num_hidden_layers", MOST_LAYERS)
    patch = keys.number("patch_size")
    yield table("vision_tower.patch_embed.proj", width, 3, patch, patch)
    yield vector("vision_tower.patch_embed.proj.bias", width)
    sides = keys.number("init_pos_emb_height"), keys.number("init_pos_emb_width")
    yield table("vision_tower.patch_embed.pos_emb", *sides, width)
    yield from encoder_layers("vision_tower.layers", keys, layers, width, inner)
    yield from layer_norm("vision_tower.final_layernorm", width, True)
    rows, columns = (keys.numbers("merge_kernel_size", 2) or (2, 2))[:2]
    merged = width * rows * columns
    yield from layer_norm("mm_projector.pre_norm", width, True)
    yield from affine("mm_projector.in_proj", merged, merged)
    yield from affine("mm_projector.out_proj", language.hidden, merged)


TOWERS: Mapping[str, Tower] = {
    "qwen3_vl": qwen,
    "qwen3_vl_moe": qwen,
    "qwen3_5": qwen,
    "qwen3_5_moe": qwen,
    "llama4": llama4,
    "gemma3": siglip,
    "gemma4": gemma4,
    "mistral3": pixtral,
    "kimi_k25": kimi,
}
"""A multimodal `model_type` to its tower for images."""
AUDIO_TOWERS: Mapping[str, Tower] = {"gemma4": gemma4_audio}
"""The same for sound."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gemma3": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 16,
        "vision_use_head": True,
    },
    "mistral3": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_channels": 3, "image_size": 1024, "patch_size": 16,
    },
    "llama4": {
        "hidden_size": 768, "intermediate_size": 5632, "num_hidden_layers": 34,
        "num_attention_heads": 16, "num_channels": 3, "image_size": 448, "patch_size": 14,
        "vision_output_dim": 7680, "projector_input_dim": 4096, "projector_output_dim": 4096,
    },
}  # fmt: skip
"""What transformers 5.23.0 takes for absent keys of towers whose released files leave some out.

They are the tower's own class's: those of the whole model's hold only without any section.
"""


def tower_weights(
    config: Mapping[str, Any], language: Keys
) -> tuple[tuple[Weight, ...], tuple[str, ...]]:
    """Weights of the towers of a `config.json`, and what of them is not counted.

    Raises:
        ConfigError: a key is missing or has a wrong value.
    """
    weights: tuple[Weight, ...] = ()
    missing = []
    kind = str(config.get("model_type"))
    for name, towers in (("vision_config", TOWERS), ("audio_config", AUDIO_TOWERS)):
        section = config.get(name)
        if not isinstance(section, Mapping):
            continue
        tower = towers.get(kind)
        if tower is None:
            missing.append(f"{name}: the weights of this tower are not counted")
        else:
            defaults = DEFAULTS.get(kind, {}) if name == "vision_config" else {}
            values = {**defaults, **section}
            weights += tuple(tower(Keys(values, f"{kind}'s {name}"), language))
    return weights, tuple(missing)
