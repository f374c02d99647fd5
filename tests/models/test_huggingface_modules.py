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
    lacks_head,
    module_class,
    tensors_of,
    tiny_config,
)
from tritter_mem.models.formats import storage_format
from tritter_mem.models.huggingface import HuggingFaceModel, read_config
from tritter_mem.models.quantization import Quantization

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
