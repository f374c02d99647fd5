"""Bundled models: each reads, names its sources, and has the parameters that its source states."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.models.tiny_models import lacks_head, module_class
from tritter_mem.config import bundled_files
from tritter_mem.config.bundled_files import find_released, released_names
from tritter_mem.errors import ConfigError, InputError
from tritter_mem.models import hub, released
from tritter_mem.models.huggingface import read_config
from tritter_mem.models.huggingface_families import SAME_AS
from tritter_mem.models.named_model import find_model
from tritter_mem.models.released import ReleasedModel, read_released, released_from

NAMES = released_names()
TOLERANCE = 0.005
SHIPS_CODE = "nemotron-super-49b"
"""Its blocks are those of Llama, or none; transformers has no class for it."""
NOT_COUNTED = {"deepseek-v4-flash": ("num_nextn_predict_layers: 1 layers are not counted",)}
PEOPLE_ASK_FOR = (
    "qwen3-0.6b", "qwen3-8b", "qwen3-32b", "qwen3-30b-a3b", "qwen3-235b-a22b", "qwen2.5-7b",
    "qwen2.5-72b", "qwen3.5-9b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "llama-3.2-1b",
    "llama-3.2-3b", "llama-3.3-70b", "llama-4-scout", "mistral-7b", "mixtral-8x7b",
    "mistral-small-24b", "gemma-2-9b", "gemma-3-27b", "gemma-4-31b", "gemma-4-e4b", "phi-4",
    "gpt-oss-20b", "gpt-oss-120b", "deepseek-v3", "deepseek-r1", "deepseek-v3.2", "kimi-k2",
    "glm-4.5", "glm-5", "minimax-m2.5", "smollm2-135m", "smollm3-3b", "olmo-2-7b", "olmo-3-32b",
)  # fmt: skip


def read(name: str) -> ReleasedModel:
    found = read_released(name)
    assert found is not None
    return found


def test_the_models_that_people_ask_for_are_there() -> None:
    assert set(PEOPLE_ASK_FOR) <= set(NAMES)
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in NAMES)


def test_sizes_are_listed_in_the_order_of_their_numbers() -> None:
    gemma = [name for name in NAMES if name.startswith("gemma-2-")]
    assert gemma == ["gemma-2-2b", "gemma-2-9b", "gemma-2-27b"]


@pytest.mark.parametrize("name", NAMES)
def test_it_names_its_sources(name: str) -> None:
    model = read(name)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.hub)
    assert {"file", "version"} <= set(model.source) <= {"file", "version", "date", "read", "note"}
    assert ("date" in model.source) != ("read" in model.source)
    when = model.source.get("date") or model.source["read"]
    assert re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", when)
    assert set(model.parameters) == {"stated", "of", "file", "version", "date"}
    assert 20 < len(model.description) < 120


@pytest.mark.parametrize("name", NAMES)
def test_its_parameters_are_those_that_the_source_states(name: str) -> None:
    model = read(name)
    assert model.model.parameters == pytest.approx(model.parameters["stated"], rel=TOLERANCE)
    assert model.model.unsupported == NOT_COUNTED.get(name, ())


@pytest.mark.parametrize("name", NAMES)
def test_its_description_states_the_parameters(name: str) -> None:
    count, unit = re.findall(r"([\d.]+) ([MBT]) parameters$", read(name).description)[0]
    stated = float(count) * {"M": 1e6, "B": 1e9, "T": 1e12}[unit]
    assert stated == pytest.approx(read(name).model.parameters, rel=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in NAMES if name != SHIPS_CODE])
def test_transformers_builds_the_same_language_model(name: str) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    ours, values = read(name).model, dict(read(name).config)
    kind = values.pop("model_type")
    classes = transformers.CONFIG_MAPPING
    config: Any = classes[kind if kind in classes else SAME_AS[kind]](**values).get_text_config()
    config.tie_word_embeddings = getattr(config, "tie_word_embeddings", False)
    with torch.device("meta"):
        module = module_class(config)._from_config(config)
    built = sum(parameter.numel() for parameter in module.parameters())
    if lacks_head(module):
        head = (w.elements for n, w in ours.language_weights() if n.startswith("lm_head"))
        built += sum(head)
    assert ours.language_parameters == built


def test_towers_for_images_and_sound_are_those_of_the_module() -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    ours, values = read("gemma-4-e2b").model, dict(read("gemma-4-e2b").config)
    config = transformers.CONFIG_MAPPING[values.pop("model_type")](**values)
    with torch.device("meta"):
        module = transformers.AutoModelForImageTextToText.from_config(config)
    built = {n: p.numel() for n, p in module.named_parameters() if "language_model" not in n}
    head = built.pop("lm_head.weight", 0)
    assert head in (0, 262_144 * 1536)
    assert sum(weight.elements for weight in ours.towers if weight.is_parameter) == sum(
        built.values()
    )


def test_a_checkpoint_has_keys_that_its_layers_do_not_use() -> None:
    """The last 20 of Gemma 4 E2B's layers use earlier keys and values; 4 have heads of 512."""
    ours = read("gemma-4-e2b").model
    unbuilt = {
        n: w.elements for n, w in ours.other_weights() if ".layers." in n and "tower" not in n
    }
    assert len(unbuilt) == 20 * 3
    assert sum(unbuilt.values()) == 16 * (2 * 1536 * 256 + 256) + 4 * (2 * 1536 * 512 + 512)
    assert not {n for n, _ in ours.language_weights()} & set(unbuilt)


def test_the_cache_of_a_token_counts_windows_that_still_grow() -> None:
    """Phi-3.5's window is 256K tokens: its 32 layers of 32 heads of 96 channels all grow."""
    assert read("phi-3.5-mini").kv_bytes_per_token == 32 * 2 * 32 * 96 * 2
    phi = read("phi-3.5-mini").model
    assert phi.kv_bytes_per_token() == 0
    assert phi.kv_bytes_per_token(context=4096) == 32 * 2 * 32 * 96 * 2
    assert phi.kv_bytes_per_token(context=phi.layers[0][0].reach()) == 0
    for name in ("qwen3-32b", "gpt-oss-20b", "gemma-3-4b", "deepseek-v3"):
        assert read(name).kv_bytes_per_token == read(name).model.kv_bytes_per_token()


def test_quantised_checkpoints_take_less_than_bfloat16() -> None:
    quantised = {name for name in NAMES if "quantization_config" in str(read(name).config)}
    assert {"gpt-oss-20b", "gpt-oss-120b", "deepseek-v3", "kimi-k2.5"} <= quantised
    for name in quantised:
        assert read(name).model.weight_bytes < 0.6 * read(name).bfloat16_bytes
    assert read("qwen3-32b").model.weight_bytes == read("qwen3-32b").bfloat16_bytes


@pytest.mark.parametrize("name", ["qwen3-32b", "Qwen3-32B", "QWEN3-32B"])
def test_a_model_is_found_by_its_name_in_whatever_case(name: str) -> None:
    found = find_model(name)
    assert found is not None
    assert found.name == name
    assert found.model == read_config(read("qwen3-32b").config)


@pytest.mark.parametrize("name", ["qwen3-33b", "", ".", "a\0b", "x" * 5000, "../models/7b", "7b"])
def test_other_names_are_no_model(name: str) -> None:
    assert find_released(name) is None
    assert read_released(name) is None


def test_a_model_is_found_by_its_repository() -> None:
    found = released_from("qwen/qwen3-32b")
    assert found is not None
    assert found.name == "qwen3-32b"
    assert released_from("nobody/qwen3-32b") is None


def test_where_the_hub_does_not_answer_the_bundled_model_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: hub.HubName) -> None:
        raise InputError(f"{name.repository}: no answer")

    monkeypatch.setattr(hub, "HubFiles", refuse)
    with pytest.raises(InputError) as caught:
        find_model("Qwen/Qwen3-32B")
    said = "Qwen/Qwen3-32B: no answer; qwen3-32b is bundled and needs no network"
    assert caught.value.problems == (said,)
    with pytest.raises(InputError, match=r"no answer$"):
        find_model("Qwen/Qwen3-32B-nothing")


def test_a_gguf_file_of_a_repository_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing bundled stands for one: what it stores differs from file to file."""

    def refuse(name: hub.HubName) -> None:
        raise InputError(f"{name.repository}: no {name.file}")

    monkeypatch.setattr(hub, "HubFiles", refuse)
    with pytest.raises(InputError, match=r"Qwen/Qwen3-32B: no some\.gguf$"):
        find_model("Qwen/Qwen3-32B:some.gguf")
    with pytest.raises(InputError, match="Qwen/Qwen3-32B: no such folder"):
        find_model("Qwen/Qwen3-32B/some.gguf")


def test_near_names_are_suggested() -> None:
    with pytest.raises(ConfigError, match=r"did you mean qwen3-32b\b"):
        bundled_files.find_profile("Qwen3-23B")


def test_a_file_with_other_keys_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("description: it\nmodell: {}\n")
    monkeypatch.setattr(released, "find_released", lambda name: path)
    with pytest.raises(ConfigError, match="got description, modell, expected description, hub"):
        read_released("wrong")


RELEASED_FILES = Path(__file__).parents[3] / "shared" / "data" / "hf-configs"
FROM_FILES = [n for n in NAMES if read(n).source["version"].startswith("ai-dynamo/aiconfigurator")]


@pytest.mark.parametrize("name", FROM_FILES)
def test_the_keys_left_out_decide_nothing(name: str) -> None:
    """What is bundled reads as the whole `config.json` that it was made from."""
    file = RELEASED_FILES / read(name).source["file"].removeprefix("model_configs/") / "config.json"
    if not file.exists():
        pytest.skip("the released configurations are not part of the project")
    ours, whole = read(name).model, read_config(json.loads(file.read_text()))
    for part in ("model_type", "layers", "outside", "mtp", "unbuilt", "towers", "dtype"):
        assert getattr(ours, part) == getattr(whole, part)
    assert ours.weight_bytes == whole.weight_bytes
    assert ours.checkpoint_bytes == whole.checkpoint_bytes
