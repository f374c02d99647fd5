"""A `config.json` read: figures that others published, properties, and files that are wrong."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny_models import tiny_config
from tritter_mem.errors import ConfigError
from tritter_mem.models.deepseek_v4_blocks import CompressedAttention
from tritter_mem.models.delta_attention_blocks import DeltaAttention
from tritter_mem.models.expert_blocks import Experts
from tritter_mem.models.formats import StorageFormat
from tritter_mem.models.gated_delta_blocks import GatedDelta
from tritter_mem.models.huggingface import read_config
from tritter_mem.models.huggingface_defaults import DEFAULTS, VERSION
from tritter_mem.models.huggingface_families import all_families
from tritter_mem.models.huggingface_keys import Keys
from tritter_mem.models.transformers_blocks import (
    Attention,
    Indexer,
)

MIB, GIB = 1024**2, 1024**3
QWEN3_30B = {
    "model_type": "qwen3_moe", "head_dim": 128, "hidden_size": 2048, "intermediate_size": 6144,
    "moe_intermediate_size": 768, "num_attention_heads": 32, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
    "vocab_size": 151936, "torch_dtype": "bfloat16",
}  # fmt: skip
GPT_OSS_120B = {"model_type": "gpt_oss", "num_hidden_layers": 36, "num_local_experts": 128}
MISTRAL_22B = {
    "model_type": "mistral", "hidden_size": 6144, "head_dim": 128, "intermediate_size": 16384,
    "num_attention_heads": 48, "num_hidden_layers": 56, "num_key_value_heads": 8,
    "vocab_size": 32768, "sliding_window": None,
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = {"model_type": "deepseek_v3"}
Q8_0 = StorageFormat(name="q8_0", bits=8, uses=(), scale_bytes=2, group=32)


def test_qwen3_s_keys_in_sglang() -> None:
    """sglang#18263: 1,669,816 tokens, K 76.44 GB and V 76.44 GB, where a GB is 2**30 bytes."""
    model = read_config(QWEN3_30B)
    keys = model.kv_bytes_per_token() // 2 * 1_669_816
    assert round(keys / GIB, 2) == 76.44
    assert round(model.weight_bytes / GIB, 2) == 56.87


def test_gpt_oss_in_llama_cpp() -> None:
    """ollama#16480: two sequences of 131,072 cells 9216.00 MiB, and of 1,280 cells 90.00 MiB."""
    model = read_config(GPT_OSS_120B)
    assert model.kv_bytes_per_token() * 2 * 131_072 == 9216 * MIB
    widths = [w for layer in model.layers for m in layer if m.reach() for w in m.rows()]
    assert sum(widths) * 2 * 2 * 1280 == 90 * MIB


def test_mistral_in_q8_0() -> None:
    """8.5 bits an element: 5,712.00 MiB at 49,152 tokens."""
    assert read_config(MISTRAL_22B).kv_bytes_per_token(Q8_0) * 49_152 == 5712 * MIB


def test_latent_attention_caches_its_latent() -> None:
    model = read_config(DEEPSEEK_V3)
    assert model.kv_bytes_per_token() == 61 * (512 + 64) * 2
    assert model.cache_bytes(1000, 3) == 3000 * model.kv_bytes_per_token()


def test_qwen3_has_its_published_active_parameters() -> None:
    model = read_config(QWEN3_30B)
    assert round(model.parameters / 1e9, 1) == 30.5
    assert round(model.active_parameters / 1e9, 2) == 3.35


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_either_name_of_the_type_is_read(key: str) -> None:
    values = {k: v for k, v in QWEN3_30B.items() if k != "torch_dtype"}
    half = read_config(values | {key: "float16"})
    full = read_config(values | {key: "torch.float32"})
    assert full.weight_bytes == 2 * half.weight_bytes
    assert full.kv_bytes_per_token() == 2 * half.kv_bytes_per_token()


def test_layers_for_prediction_are_in_a_checkpoint_alone() -> None:
    one, none = ({**DEEPSEEK_V3, "num_nextn_predict_layers": count} for count in (1, 0))
    with_them, without = read_config(one), read_config(none)
    assert with_them.language_parameters == without.language_parameters
    tables = 2 * 129_280 * 7168
    assert with_them.parameters - without.parameters > 11e9 + tables
    assert with_them.weight_bytes == without.weight_bytes
    assert with_them.checkpoint_bytes > without.checkpoint_bytes


def test_layers_for_prediction_that_are_not_counted_are_said() -> None:
    model = read_config({"model_type": "deepseek_v4", "num_nextn_predict_layers": 1})
    assert model.unsupported == ("num_nextn_predict_layers: 1 layers are not counted",)


def test_unknown_keys_and_null_heads_are_fine() -> None:
    llama = {"model_type": "llama", "num_hidden_layers": 2}
    plain = read_config(llama)
    said = {"num_key_value_heads": None, "head_dim": None, "rope_scaling": {"type": "yarn"}, "x": 1}
    assert read_config(llama | said).parameters == plain.parameters
    assert read_config(llama | {"num_key_value_heads": 0}).parameters == plain.parameters


def test_an_unknown_type_is_said_to_be_unknown() -> None:
    values = {k: v for k, v in MISTRAL_22B.items() if k != "model_type"}
    model = read_config(values | {"model_type": "novel", "kv_lora_rank": 512})
    assert "novel is unknown" in model.unsupported[0]
    assert "kv_lora_rank" in model.unsupported[1]
    assert model.kv_bytes_per_token() == read_config(MISTRAL_22B).kv_bytes_per_token()


def test_a_tower_that_is_not_counted_is_said() -> None:
    values = {"model_type": "llava", "text_config": {**MISTRAL_22B}, "vision_config": {"x": 1}}
    model = read_config(values)
    assert model.unsupported == ("vision_config: the weights of this tower are not counted",)
    assert model.parameters == read_config(MISTRAL_22B).parameters


BLOCK = {
    "attention": {"n_heads_in_group": 8, "no_op": False, "replace_with_linear": False},
    "ffn": {"ffn_mult": 2.625, "no_op": False, "replace_with_linear": False},
}
NAS = {
    "model_type": "nemotron-nas", "hidden_size": 64, "num_attention_heads": 8, "vocab_size": 100,
    "num_hidden_layers": 1, "num_key_value_heads": None, "intermediate_size": None,
}  # fmt: skip


def nas(**attention: bool) -> int:
    block = copy.deepcopy(BLOCK) | {"attention": BLOCK["attention"] | attention}
    return read_config(NAS | {"block_configs": [block]}).language_parameters


def test_blocks_that_do_nothing_weigh_nothing() -> None:
    projections = 2 * 64 * 64 + 2 * 8 * 64
    assert nas() - nas(no_op=True) == projections + 64
    assert nas() - nas(replace_with_linear=True) == projections - 64 * 64


WRONG: tuple[tuple[Any, str], ...] = (
    ([], "a JSON object"),
    ({}, "a JSON object"),
    ("llama", "a JSON object"),
    ({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}, "no model_type"),
    ({"model_type": "siglip_vision_model", "hidden_size": 8}, "not a language model"),
    ({"model_type": "gpt2", "n_embd": 768}, "gpt2 is unknown, and hidden_size"),
    ({"model_type": "llama", "hidden_size": "4096"}, "hidden_size"),
    ({"model_type": "llama", "hidden_size": -1}, "hidden_size"),
    ({"model_type": "llama", "num_hidden_layers": 0}, "num_hidden_layers"),
    ({"model_type": "llama", "num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"model_type": "llama", "num_hidden_layers": True}, "num_hidden_layers"),
    ({"model_type": "gemma3", "text_config": {"layer_types": ["full_attention"]}}, "layer_types"),
    ({"model_type": "nemotron_h", "hybrid_override_pattern": "MX"}, "hybrid_override_pattern"),
    ({"model_type": "nemotron-nas", "hidden_size": 8, "vocab_size": 8}, "block_configs"),
    (NAS | {"block_configs": [{}]}, "block_configs.0.attention.n_heads_in_group"),
    ({"model_type": "llama", "quantization_config": [1]}, "quantization_config"),
    ({"model_type": "zamba2", "num_attention_heads": 10**9}, "num_attention_heads: got 1,000"),
    ({"model_type": "zamba2", "n_mamba_heads": 10**9}, "n_mamba_heads: got 1,000"),
    ({"model_type": "gemma3n_text", "num_hidden_layers": 4}, "15 of 4 layers share keys"),
    ({"model_type": "gemma4_text", "num_hidden_layers": 6, "num_kv_shared_layers": 1},
     "not each kind of layer is before them"),
)  # fmt: skip


@pytest.mark.parametrize(("values", "said"), WRONG)
def test_a_wrong_file_is_said_to_be_wrong(values: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(values)
    assert len(error.value.problems) == 1
    assert said in error.value.problems[0]


NO_SIZES = (float("inf"), float("nan"), -1, 10**400, "x", {}, [float("inf")] * 100, 1 << 41)


@pytest.mark.parametrize("kind", sorted(all_families()))
def test_a_value_that_is_no_size_is_refused_or_does_not_count(kind: str) -> None:
    """JSON's numbers may be infinite: none of them gets as far as a formula."""
    whole = {"model_type": kind, **DEFAULTS.get(kind, {})}
    for key in whole.keys() - {"model_type"}:
        for value in NO_SIZES:
            with suppress(ConfigError):
                model = read_config({**whole, key: value})
                sizes = (model.weight_bytes, model.kv_bytes_per_token(), model.cache_bytes(4096, 1))
                assert all(type(size) is int for size in sizes), (key, value)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"model_type": "llama", "rope_parameters": {"partial_rotary_factor": float("inf")}},
         "rope_parameters.partial_rotary_factor"),
        ({"model_type": "kimi_linear", "linear_attn_config": {"head_dim": 1e400}},
         "linear_attn_config.head_dim"),
        ({"model_type": "deepseek_v4", "compress_rates": {"compressed_sparse_attention": 1e400}},
         "compress_rates.compressed_sparse_attention"),
        ({"model_type": "step3p7", "moe_layers_enum": [1e400]}, "moe_layers_enum"),
        ({"model_type": "longcat_flash", "num_layers": 1 << 40}, "num_layers"),
    ],
)  # fmt: skip
def test_a_wrong_number_of_a_section_is_named_with_its_place(values: Any, place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        read_config({**DEFAULTS.get(values["model_type"], {}), **values})


GROWING: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
    ({"model_type": "llama", "head_dim": 8}, ("num_hidden_layers", "num_key_value_heads")),
    ({"model_type": "gpt_oss"}, ("num_hidden_layers", "num_local_experts", "head_dim")),
    ({"model_type": "deepseek_v3"}, ("num_hidden_layers", "kv_lora_rank", "n_routed_experts")),
    ({"model_type": "qwen3_next"}, ("num_hidden_layers", "linear_num_value_heads", "num_experts")),
    ({"model_type": "jamba"}, ("num_hidden_layers", "mamba_d_state", "num_key_value_heads")),
    ({"model_type": "deepseek_v4"}, ("num_hidden_layers", "head_dim", "index_head_dim")),
)


@settings(deadline=None, max_examples=60)
@given(case=st.sampled_from(GROWING), data=st.data(), more=st.integers(1, 8))
def test_more_of_anything_is_never_less(case: Any, data: Any, more: int) -> None:
    values, names = case
    name = data.draw(st.sampled_from(names))
    start = DEFAULTS[values["model_type"]].get(name, 8)
    few, many = read_config(values | {name: start}), read_config(values | {name: start + more})
    context, batch = data.draw(st.integers(1, 5000)), data.draw(st.integers(1, 5))
    assert few.parameters < many.parameters or "kv" in name or "index" in name
    assert few.parameters <= many.parameters
    assert few.weight_bytes <= many.weight_bytes
    assert few.active_parameters <= many.active_parameters <= many.language_parameters
    assert few.kv_bytes_per_token() <= many.kv_bytes_per_token()
    assert few.cache_bytes(context, batch) <= many.cache_bytes(context, batch)


@settings(deadline=None, max_examples=60)
@given(case=st.sampled_from(GROWING), context=st.integers(1, 300_000), batch=st.integers(1, 64))
def test_a_longer_context_or_batch_never_takes_less(case: Any, context: int, batch: int) -> None:
    """In steps of whole compressed tokens: what waits to be compressed goes."""
    model = read_config(case[0])
    held = model.cache_bytes(context, batch)
    assert held <= model.cache_bytes(context + 128, batch)
    assert held < model.cache_bytes(context, batch + 1)


@pytest.mark.parametrize("model_type", [name for name in DEFAULTS if name != "nemotron-nas"])
def test_defaults_are_those_of_the_classes(model_type: str) -> None:
    from tests.models.tiny_models import config_class

    transformers = pytest.importorskip("transformers")
    if transformers.__version__ != VERSION:
        pytest.skip(f"the defaults are those of transformers {VERSION}")
    fields = config_class(model_type).__dataclass_fields__
    for name, value in DEFAULTS[model_type].items():
        field = fields[name]
        made = field.default_factory() if callable(field.default_factory) else field.default
        assert value == made, name


def test_one_of_four_layers_of_hy_v4_has_an_indexer_behind_the_first() -> None:
    values = {**DEFAULTS["hy_v4"], "model_type": "hy_v4", "num_hidden_layers": 10}
    values.pop("indexer_types", None)
    layers = read_config(values).layers
    with_indexer = [
        n for n, layer in enumerate(layers) if any(isinstance(m, Indexer) for m in layer)
    ]
    assert with_indexer == [0, 1, 5, 9]


def test_mlps_of_qwen3_5_have_no_bias() -> None:
    values = {**DEFAULTS["qwen3_5_text"], "model_type": "qwen3_5_text", "num_hidden_layers": 4}
    model = read_config({**values, "mtp_num_hidden_layers": 1, "mlp_bias": True})
    names = [name for name, _ in (*model.language_weights(), *model.other_weights())]
    assert not [name for name in names if "mlp" in name and name.endswith("bias")]


def family_layers(model_type: str, count: int, **values: Any) -> tuple[Any, ...]:
    """Layers of a family with the defaults of its class, without lists that the class derives."""
    whole = {**DEFAULTS[model_type], "model_type": model_type, "num_hidden_layers": count}
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        whole.pop(name, None)
    return read_config({**whole, **values}).layers


def those_with(layers: tuple[Any, ...], kind: type, **values: Any) -> list[int]:
    return [
        number
        for number, layer in enumerate(layers)
        if any(
            isinstance(module, kind) and all(getattr(module, k) == v for k, v in values.items())
            for module in layer
        )
    ]


def test_shared_blocks_of_zamba2_are_where_the_released_model_has_them() -> None:
    layers = family_layers("zamba2", 54)
    hybrids = [n for n, layer in enumerate(layers) if len(layer) > 2]
    assert len(layers) == 54
    assert hybrids == [6, 12, 18, 24, 30, 36, 42, 47, 51]


def test_the_last_layer_of_muse_spark_and_each_fourth_before_it_attend_to_all() -> None:
    layers = family_layers("muse_spark_text", 9, sliding_window=64)
    assert those_with(layers, Attention, window=None) == [0, 4, 8]


def test_full_layers_of_kimi_linear_count_from_one() -> None:
    section = {"num_heads": 2, "head_dim": 8, "short_conv_kernel_size": 4}
    layers = family_layers(
        "kimi_linear", 8, linear_attn_config={**section, "full_attn_layers": [4, 8]}
    )
    assert those_with(layers, DeltaAttention) == [0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("model_type", ["kimi_linear", "deepseek_v3"])
@pytest.mark.parametrize(
    ("given", "normalised"),
    [({}, True), ({"norm_topk_prob": True}, True), ({"norm_topk_prob": False}, False)],
    ids=str,
)
def test_weights_of_a_token_s_experts_sum_to_one_unless_the_file_says_no(
    model_type: str, given: dict[str, bool], normalised: bool
) -> None:
    values = {k: v for k, v in tiny_config(model_type, 0).items() if k != "norm_topk_prob"}
    layers = read_config(values | given).layers
    found = [block for layer in layers for block in layer if isinstance(block, Experts)]
    assert {experts.normalised for experts in found} == {normalised}


def test_dense_layers_of_cohere2_moe_have_a_period_of_windows_of_their_own() -> None:
    layers = family_layers(
        "cohere2_moe", 8, first_k_dense_replace=4, sliding_window=64, sliding_window_pattern=4,
        prefix_dense_sliding_window_pattern=2,
    )  # fmt: skip
    assert those_with(layers, Attention, window=None) == [1, 3, 7]


@pytest.mark.parametrize("model_type", ["qwen3_next", "qwen3_5_text"])
def test_the_gated_delta_rule_projects_two_keys_and_a_value(model_type: str) -> None:
    """Keys of 3 heads of 8 for queries and for keys, values of 6 heads of 16; a gate as wide."""
    sizes = {
        "linear_num_key_heads": 3, "linear_num_value_heads": 6, "linear_key_head_dim": 8,
        "linear_value_head_dim": 16,
    }  # fmt: skip
    [delta, *_] = [m for layer in family_layers(model_type, 4, **sizes) for m in layer
                   if isinstance(m, GatedDelta)]  # fmt: skip
    assert sum(width for _, width in delta.inputs) == 2 * 3 * 8 + 2 * 6 * 16 + 2 * 6


def test_of_two_names_of_a_key_the_second_one_counts() -> None:
    """As in transformers, whatever their order in the file."""
    for values in (
        {"num_local_experts": 8, "num_experts": 4},
        {"num_experts": 4, "num_local_experts": 8},
    ):
        keys = Keys({**values, "model_type": "mixtral"}, "mixtral")
        assert (keys.number("num_local_experts"), keys.number("num_experts")) == (4, 4)


def test_odd_layers_of_deepseek_v4_behind_the_first_two_choose_their_tokens() -> None:
    layers = family_layers("deepseek_v4", 8, compress_ratios=None)
    every = set(range(8))
    assert every - set(those_with(layers, CompressedAttention, index=None)) == {3, 5, 7}


def test_a_gate_of_step_is_one_number_a_head_or_as_wide_as_its_heads() -> None:
    for gating, width in ((True, 4), (False, 4 * 32)):
        layers = family_layers(
            "step3p5", 1, num_attention_heads=4, head_dim=32, gating=gating, moe_layers_enum=""
        )
        assert those_with(layers, Attention, gate=(("g_proj", width),)) == [0]


def test_qwen3_5_predicts_further_tokens_only_where_it_has_layers_for_it() -> None:
    values = {**DEFAULTS["qwen3_5_text"], "model_type": "qwen3_5_text", "num_hidden_layers": 4}
    assert read_config({**values, "mtp_num_hidden_layers": 0}).mtp == ()
    assert len(read_config({**values, "mtp_num_hidden_layers": 2}).mtp) == 3


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss"])
def test_no_token_takes_more_experts_than_there_are(kind: str) -> None:
    values = QWEN3_30B | {"model_type": kind, "num_local_experts": 4, "n_routed_experts": 4}
    values |= {"num_experts": 4, "num_experts_per_tok": 5, "n_group": 1, "topk_group": 1}
    with pytest.raises(ConfigError, match="experts of a token: got 5, expected at most the 4"):
        read_config(values)


@pytest.mark.parametrize(
    ("section", "stays"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, True),
        ({"quant_method": "fp8", "weight_block_size": [32, 32]}, False),
    ],
)
def test_bitsandbytes_alone_leaves_out_a_class_of_its_own(
    section: dict[str, Any], stays: bool
) -> None:
    """`DeepseekV4GroupedLinear` is an `nn.Linear` to the others."""
    model = read_config(tiny_config("deepseek_v4", 0) | {"quantization_config": section})
    name = "model.layers.0.self_attn.o_a_proj.weight"
    assert model.stays_unquantised(name, model.quantization) is stays
