"""Released configurations: parameters equal those of the module, or of the publisher.

The files are not part of the project; where they are missing, these tests skip.
"""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from tests.models.tiny_models import lacks_head, module_class
from tritter_mem.models.huggingface import HuggingFaceModel, read_config

FOLDER = Path(__file__).parents[3] / "shared" / "data"
RELEASED = (
    "MiniMaxAI--MiniMax-M2.5", "Qwen--Qwen3-0.6B", "Qwen--Qwen3-30B-A3B",
    "Qwen--Qwen3-30B-A3B-FP8", "Qwen--Qwen3-8B", "Qwen--Qwen3-VL-8B-Instruct",
    "Qwen--Qwen3.5-27B", "Qwen--Qwen3.5-35B-A3B", "XiaomiMiMo--MiMo-V2-Flash",
    "deepseek-ai--DeepSeek-V3", "deepseek-ai--DeepSeek-V3.2", "deepseek-ai--DeepSeek-V4-Flash",
    "google--gemma-4-26B-A4B", "meta-llama--Llama-4-Scout-17B-16E-Instruct",
    "meta-llama--Meta-Llama-3.1-405B", "meta-llama--Meta-Llama-3.1-8B",
    "mistralai--Mixtral-8x7B-v0.1", "moonshotai--Kimi-K2.5", "nvidia--DeepSeek-V3.1-NVFP4",
    "nvidia--Llama-3.1-70B-Instruct-FP8", "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "nvidia--Nemotron-H-56B-Base-8K", "nvidia--Qwen3-235B-A22B-NVFP4", "openai--gpt-oss-20b",
    "stepfun-ai--Step-3.7-Flash", "zai-org--GLM-5", "zai-org--GLM-5-FP8",
)  # fmt: skip
PUBLISHED = {
    "deepseek-ai--DeepSeek-V3": 684_489_845_504,
    "moonshotai--Kimi-K2-Instruct": 1_026_408_232_448,
    "zai-org--GLM-5": 753_864_139_008,
    "Qwen--Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen--Qwen3.5-27B": 27_781_427_952,
    "Qwen--Qwen3.5-35B-A3B": 35_951_822_704,
    "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31_577_940_288,
}
"""Parameters of all safetensors files, as the Hub counts them, and llama.cpp the last."""
TOTAL_SIZE = {
    "openai--gpt-oss-20b": 13_761_264_768,
    "google--gemma-4-26B-A4B": 51_611_872_412,
}
"""`total_size` of the published `model.safetensors.index.json`."""


def read(name: str, file: str = "config.json") -> dict[str, Any]:
    path = FOLDER / "hf-configs" / name / file
    if not path.exists():
        pytest.skip("the released configurations are not part of the project")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def model(name: str) -> HuggingFaceModel:
    beside = FOLDER / "hf-configs" / name / "hf_quant_config.json"
    config = read(name)
    return read_config(config, json.loads(beside.read_text()) if beside.exists() else None)


def language_config(values: dict[str, Any]) -> Any:
    mapping = pytest.importorskip("transformers").CONFIG_MAPPING
    given = {key: value for key, value in values.items() if key != "model_type"}
    if values["model_type"] == "step3p7":  # its keys are not in a section
        from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig

        return Step3p7TextConfig(**given | {"n_routed_experts": values["num_experts"]})
    return mapping[values["model_type"]](**given).get_text_config()


@pytest.mark.parametrize("name", RELEASED)
def test_language_parameters_are_those_of_the_module(name: str) -> None:
    ours, config = model(name), language_config(read(name))
    torch = pytest.importorskip("torch")
    config.tie_word_embeddings = getattr(config, "tie_word_embeddings", False)
    with torch.device("meta"):
        module = module_class(config)._from_config(config)
    built = sum(parameter.numel() for parameter in module.parameters())
    if lacks_head(module):
        head = (w.elements for n, w in ours.language_weights() if n.startswith("lm_head"))
        built += sum(head)
    assert ours.language_parameters == built


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_checkpoint_has_the_published_parameters(name: str) -> None:
    """Towers, layers for multi-token prediction and buffers included."""
    assert model(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", TOTAL_SIZE)
def test_a_checkpoint_has_the_published_bytes(name: str) -> None:
    assert model(name).checkpoint_bytes == TOTAL_SIZE[name]


def test_nemotron_super_is_made_of_llama_s_layers() -> None:
    """It ships its own code, whose blocks are Llama's modules, or none."""
    values = read("nvidia--Llama-3_3-Nemotron-Super-49B-v1")
    config_of_llama = pytest.importorskip("transformers").LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    torch = pytest.importorskip("torch")
    hidden, heads, built = values["hidden_size"], values["num_attention_heads"], 0
    for block in values["block_configs"]:
        own, mlp = block["attention"], block["ffn"]
        assert not any(part["replace_with_linear"] for part in (own, mlp))
        config = config_of_llama(
            hidden_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=heads // (own["n_heads_in_group"] or heads),
            intermediate_size=ceil(int(mlp["ffn_mult"] * 2 * hidden / 3) / 256) * 256,
        )
        with torch.device("meta"):
            layer = LlamaDecoderLayer(config, 0)
        gone = [layer.self_attn, layer.input_layernorm] if own["no_op"] else []
        built += sum(parameter.numel() for parameter in layer.parameters())
        built -= sum(parameter.numel() for part in gone for parameter in part.parameters())
    tables = 2 * values["vocab_size"] * hidden + hidden
    ours = model("nvidia--Llama-3_3-Nemotron-Super-49B-v1")
    assert ours.language_parameters == built + tables


TOWERS = (
    "Qwen--Qwen3-VL-8B-Instruct", "Qwen--Qwen3.5-27B", "google--gemma-4-26B-A4B",
    "moonshotai--Kimi-K2.5",
)  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
def test_towers_are_those_of_the_module(name: str) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    values, ours = read(name), model(name)
    given = {key: value for key, value in values.items() if key != "model_type"}
    config = transformers.CONFIG_MAPPING[values["model_type"]](**given)
    with torch.device("meta"):
        module = transformers.AutoModelForImageTextToText.from_config(config)
    parameters = {n: p for n, p in module.named_parameters() if "language_model" not in n}
    built = sum(p.numel() for n, p in parameters.items() if not n.startswith("lm_head"))
    assert sum(weight.elements for weight in ours.towers if weight.is_parameter) == built
    assert ours.unsupported == ()


def test_every_listed_architecture_has_a_family() -> None:
    from tritter_mem.models.huggingface_families import SAME_AS, all_families

    path = FOLDER / "architectures.json"
    if not path.exists():
        pytest.skip("the list of architectures is not part of the project")
    listed = json.loads(path.read_text())
    assert {SAME_AS.get(name, name) for name in listed} <= all_families().keys()
