"""Weights and caches equal, to the byte, what transformers builds and holds."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models.tiny_models import (
    BATCH,
    BUILT,
    DECODED,
    PREFILL,
    config_of,
    known_keys,
    lacks_head,
    module_class,
    tensors_of,
    tiny_config,
)
from tritter_mem.models.formats import storage_format
from tritter_mem.models.gemma3n_blocks import SparseFeedForward
from tritter_mem.models.huggingface import HuggingFaceModel, read_config
from tritter_mem.models.quantization import Quantization
from tritter_mem.models.transformers_blocks import Attention

pytest.importorskip("transformers")
import torch

STATE_SPACES = ("mamba", "falcon_mamba", "mamba2")
"""Families whose cache has another name."""
RENAMED = ("inkling_text", "zamba2")
"""Families whose layers have other names in transformers than in their checkpoints."""
DTYPES = ("bfloat16", "float16", "float32")


def head_elements(ours: HuggingFaceModel, module: Any) -> int:
    """Of the output projection that a bare model lacks."""
    found = (w.elements for name, w in ours.language_weights() if name.startswith("lm_head"))
    return sum(found) if lacks_head(module) else 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model_type", BUILT)
def test_a_model_has_the_parameters_of_its_module(model_type: str, seed: int) -> None:
    values = tiny_config(model_type, seed)
    config, ours = config_of(values), read_config(values)
    with torch.device("meta"):
        module = module_class(config)._from_config(config)
    built = sum(parameter.numel() for parameter in module.parameters())
    assert ours.language_parameters == built + head_elements(ours, module)
    stored = module.state_dict()
    buffers = sum(tensor.numel() for name, tensor in module.named_buffers() if name in stored)
    assert sum(w.elements for _, w in ours.language_weights() if not w.is_parameter) == buffers
    assert ours.unsupported == ()


def of_layers(name: str) -> str:
    """A name from the number of its layer on; empty: it is outside of the layers."""
    return name.partition("layers.")[2]


@pytest.mark.parametrize("model_type", [name for name in BUILT if name not in RENAMED])
def test_linear_layers_are_those_that_transformers_may_quantise(model_type: str) -> None:
    values = tiny_config(model_type, 0)
    config, ours = config_of(values), read_config(values)
    with torch.device("meta"):
        module = module_class(config)._from_config(config)
    linear = {
        of_layers(name)
        for name, weight in ours.language_weights()
        if weight.is_linear and ".experts." not in name
    }
    built = {
        of_layers(name)
        for name, part in module.named_modules()
        if type(part) is torch.nn.Linear or "GroupedLinear" in type(part).__name__
    }
    assert linear - {""} == built - {""}


def as_loaded(module: Any) -> None:
    """Numbers that are added to what is cached are float32, as `from_pretrained` keeps them."""
    for name, parameter in module.named_parameters():
        if (
            name.endswith("position_bias")
            and "position_bias" in module._keep_in_fp32_modules_strict
        ):
            parameter.data = parameter.data.float()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model_type", BUILT)
def test_a_cache_holds_what_transformers_does(model_type: str, seed: int) -> None:
    dtype = DTYPES[seed]
    values = tiny_config(model_type, seed)
    config, ours = config_of(values), read_config(values)
    module = module_class(config)._from_config(config, dtype=getattr(torch, dtype)).eval()
    as_loaded(module)
    ids = torch.randint(3, 90, (BATCH, PREFILL))
    kept = "cache_params" if model_type in STATE_SPACES else "past_key_values"
    cache: Any = None
    with torch.no_grad():
        for step in range(1 + DECODED):
            given = {kept: cache} if step else {}
            cache = module(ids if not step else ids[:, :1], use_cache=True, **given)[kept]
            held = sum(tensor.nbytes for tensor in tensors_of(cache))
            assert held == ours.cache_bytes(PREFILL + step, BATCH, dtype), f"step {step}"


def test_a_layer_with_a_window_keeps_the_storage_behind_its_view() -> None:
    values = tiny_config("mistral", 0) | {"sliding_window": 4, "num_hidden_layers": 1}
    config = config_of(values)
    module = module_class(config)._from_config(config).eval()
    ids = torch.randint(3, 90, (1, PREFILL))
    row = 2 * config.num_key_value_heads * config.head_dim * 4
    with torch.no_grad():
        cache = module(ids, use_cache=True).past_key_values
        storages = [tensor.untyped_storage().nbytes() for tensor in tensors_of(cache)]
        assert sum(storages) == PREFILL * row
        cache = module(ids[:, :1], use_cache=True, past_key_values=cache).past_key_values
        storages = [tensor.untyped_storage().nbytes() for tensor in tensors_of(cache)]
        assert sum(storages) == 4 * row
    assert read_config(values).cache_bytes(PREFILL, 1, "float32") == 3 * row


KEPT_IN_FLOAT32 = (
    "deepseek_v3", "deepseek_v4", "glm_moe_dsa", "gpt_oss", "longcat_flash", "hy_v4", "afmoe",
    "ernie4_5_moe", "bailing_hybrid", "glm5_next_text", "inkling_text", "muse_spark_text",
    "qwen3_moe", "jamba", "mistral_large4_text", "lfm2_moe", "olmo_hybrid",
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("model_type", KEPT_IN_FLOAT32)
def test_loaded_weights_take_their_bytes(model_type: str, dtype: str, tmp_path: Any) -> None:
    """Loaded, so that what a model keeps in float32 is float32."""
    values = tiny_config(model_type, 0)
    config, ours = config_of(values), read_config(values)
    module_class(config)._from_config(config).save_pretrained(tmp_path)
    module = module_class(config).from_pretrained(tmp_path, dtype=getattr(torch, dtype))
    stored, tensors = module.state_dict(), {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name in stored:
            tensors[name] = tensor.nbytes
    row = storage_format(dtype)
    expected = ours.weight_bytes_in(Quantization(), row)
    assert expected == sum(tensors.values()) + head_elements(ours, module) * row.element_bytes


DERIVED = (
    "layer_types", "layers_block_type", "full_attn_idxs", "mlp_layer_types", "attn_layer_indices",
    "hybrid_override_pattern", "kv_source_layers", "indexer_types", "linear_attn_config",
    "num_kv_shared_layers",
)  # fmt: skip
"""Keys that say which layer is of which kind, or that hold for so many layers alone."""
LISTED = (
    "granitemoehybrid", "bamba", "zamba2", "step3p5", "minimax_m3_vl_text", "nemotron_h",
    "deepseek_v4",
)  # fmt: skip
"""Families whose files list the kinds of their layers, or whose kinds are more than mixers."""
WINDOWED = ("sliding_attention", "hybrid_sliding", "chunked_attention")
"""Kinds whose layers reach a window."""


@pytest.mark.parametrize("layers", [3, 14, 32])
@pytest.mark.parametrize("model_type", [name for name in BUILT if name not in LISTED])
def test_layers_that_no_key_lists_are_of_the_kinds_that_the_class_derives(
    model_type: str, layers: int
) -> None:
    """Layers have the same mixer where they are of the same kind."""
    tiny = {k: v for k, v in tiny_config(model_type, 0).items() if k not in DERIVED}
    given = {"num_hidden_layers": layers, "num_kv_shared_layers": 0}
    values = tiny | {key: value for key, value in given.items() if key in known_keys(model_type)}
    kinds = getattr(config_of(values), "layer_types", None)
    found = [
        tuple((type(module), getattr(module, "window", None)) for module in layer
              if getattr(module, "ROLE", "") == "mixer")
        for layer in read_config(values).layers
    ]  # fmt: skip
    if kinds is None:
        assert len(set(found)) == 1
        return
    pairs = set(zip(kinds, found, strict=True))
    assert len(pairs) == len(set(kinds)) == len({mixer for _, mixer in pairs})
    for kind, mixer in pairs:
        windowed = any(window is not None for _, window in mixer)
        assert windowed is (kind in WINDOWED)


EDGES: dict[str, dict[str, Any]] = {
    "kimi without shared experts": {"model_type": "kimi_linear", "num_shared_experts": 0},
    "kimi with two": {"model_type": "kimi_linear", "num_shared_experts": 2},
    "afmoe without shared experts": {"model_type": "afmoe", "num_shared_experts": 0},
    "cohere2_moe without": {"model_type": "cohere2_moe", "num_shared_experts": 0},
    "ernie up to the last layer": {"model_type": "ernie4_5_moe", "moe_layer_end_index": -1},
    "ernie every other": {
        "model_type": "ernie4_5_moe", "moe_layer_end_index": -1, "moe_layer_interval": 2,
        "num_hidden_layers": 6,
    },
    "jamba of one expert": {
        "model_type": "jamba", "num_experts": 1, "num_local_experts": 1, "num_experts_per_tok": 1,
    },
    "jamba of two experts": {
        "model_type": "jamba", "num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 2,
    },
    "jamba with a derived rank": {
        "model_type": "jamba", "mamba_dt_rank": "auto", "hidden_size": 40,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    },
    "step3p5 gated by head": {"model_type": "step3p5", "gating": True},
    "step3p5 gated by channel": {"model_type": "step3p5", "gating": "elementwise"},
    "three key heads of a delta rule": {
        "model_type": "qwen3_next", "linear_num_key_heads": 3, "linear_num_value_heads": 6,
    },
    "mimo of 14 layers": {"model_type": "mimo_v2_flash", "num_hidden_layers": 14},
    "gemma3n of 14 layers": {"model_type": "gemma3n_text", "num_hidden_layers": 14},
    "lfm2 with an adjusted width": {
        "model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_ff_dim": 100,
        "block_ffn_dim_multiplier": 1.3, "block_multiple_of": 24,
    },
}  # fmt: skip
"""Keys at the edges of what a family reads."""


@pytest.mark.parametrize("name", EDGES)
def test_edges_have_the_parameters_of_their_module(name: str) -> None:
    given = EDGES[name]
    values = tiny_config(given["model_type"], 0) | given
    config, ours = config_of(values), read_config(values)
    with torch.device("meta"):
        module = module_class(config)._from_config(config)
    built = sum(parameter.numel() for parameter in module.parameters())
    assert ours.language_parameters == built + head_elements(ours, module)


@pytest.mark.parametrize("window", [8, 9])
@pytest.mark.parametrize(("model_type", "both"), [("gemma3_text", True), ("gemma4_text", "all")])
def test_a_window_for_both_directions_is_halved(
    model_type: str, both: bool | str, window: int
) -> None:
    given = {"use_bidirectional_attention": both, "sliding_window": window}
    values = tiny_config(model_type, 0) | given
    found = {
        module.window for layer in read_config(values).layers for module in layer
        if getattr(module, "window", None) is not None
    }  # fmt: skip
    assert found == {config_of(values).sliding_window}


@pytest.mark.parametrize("layers", [8, 10, 11, 14])
def test_the_layers_of_gemma_3n_that_keep_the_largest_numbers(layers: int) -> None:
    given = {"num_hidden_layers": layers, "num_kv_shared_layers": 0}
    values = tiny_config("gemma3n_text", 0) | given
    pattern = [bool(share) for share in config_of(values).activation_sparsity_pattern]
    found = [
        module.sparse for layer in read_config(values).layers for module in layer
        if isinstance(module, SparseFeedForward)
    ]  # fmt: skip
    assert found == pattern


@pytest.mark.parametrize("dense", [0, 1, 3])
@pytest.mark.parametrize("pattern", [1, 2])
def test_layers_of_cohere_2_before_the_experts_have_a_pattern_of_their_own(
    dense: int, pattern: int
) -> None:
    values = tiny_config("cohere2_moe", 0) | {
        "num_hidden_layers": 9, "first_k_dense_replace": dense, "sliding_window_pattern": 3,
        "prefix_dense_sliding_window_pattern": pattern,
    }  # fmt: skip
    config, ours = config_of(values), read_config(values)
    with torch.device("meta"):
        module = module_class(config)._from_config(config)
    built = [layer.self_attn for layer in module.model.layers]
    found = [part for layer in ours.layers for part in layer if isinstance(part, Attention)]
    assert [own.window for own in found] == [own.sliding_window for own in built]
    assert [own.rotates for own in found] == [
        own.sliding_window is not None or own.force_rope for own in built
    ]
    assert ours.language_parameters == sum(p.numel() for p in module.parameters())
