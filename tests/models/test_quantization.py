"""Stored bytes of quantised weights, and which modules a configuration leaves as they are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritter_mem.errors import ConfigError
from tritter_mem.models import quantization as q
from tritter_mem.models.huggingface import read_config

OUTPUTS, INPUTS = 512, 1024
MOE = {
    "model_type": "qwen3_moe", "num_hidden_layers": 2, "hidden_size": 256, "vocab_size": 1000,
    "intermediate_size": 512, "moe_intermediate_size": 128, "num_experts": 4,
    "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "mlp_only_layers": [],
}  # fmt: skip


def size(*tensors: tuple[tuple[int, ...], str]) -> int:
    """Bytes of tensors of a shape and a PyTorch type."""
    torch = pytest.importorskip("torch")
    return sum(torch.empty(s, dtype=getattr(torch, t), device="meta").nbytes for s, t in tensors)


GROUPS = INPUTS // 128
STORED = (
    (q.fp8_tensor(2), (((OUTPUTS, INPUTS), "float8_e4m3fn"), ((), "float32"), ((), "float32"))),
    (q.fp8_channel(2), (((OUTPUTS, INPUTS), "float8_e4m3fn"), ((OUTPUTS, 1), "bfloat16"))),
    (q.fp8_blocks(128, 128), (((OUTPUTS, INPUTS), "float8_e4m3fn"), ((4, 8), "float32"))),
    (
        q.awq(4, 128),
        (
            ((INPUTS, OUTPUTS // 8), "int32"),
            ((GROUPS, OUTPUTS // 8), "int32"),
            ((GROUPS, OUTPUTS), "float16"),
        ),
    ),
    (
        q.gptq(4, 128),
        (
            ((INPUTS // 8, OUTPUTS), "int32"),
            ((GROUPS, OUTPUTS // 8), "int32"),
            ((GROUPS, OUTPUTS), "float16"),
            ((INPUTS,), "int32"),
        ),
    ),
    (q.bitsandbytes_int8(), (((OUTPUTS, INPUTS), "int8"), ((OUTPUTS,), "float32"))),
    (
        q.bitsandbytes_4bit("nf4", False),
        (
            ((OUTPUTS * INPUTS // 2, 1), "uint8"),
            ((OUTPUTS * INPUTS // 64,), "float32"),
            ((16,), "float32"),
        ),
    ),
    (
        q.bitsandbytes_4bit("nf4", True),
        (
            ((OUTPUTS * INPUTS // 2, 1), "uint8"),
            ((OUTPUTS * INPUTS // 64,), "uint8"),
            ((OUTPUTS * INPUTS // 64 // 256,), "float32"),
            ((), "float32"),
            ((16,), "float32"),
        ),
    ),
    (
        q.packed_integers(4, 32, 2, zeros=False, order=False),
        (
            ((OUTPUTS, INPUTS // 8), "int32"),
            ((OUTPUTS, INPUTS // 32), "bfloat16"),
            ((2,), "int64"),
        ),
    ),
    (q.int8_channel(2), (((OUTPUTS, INPUTS), "int8"), ((OUTPUTS, 1), "bfloat16"))),
    (
        q.mxfp4(),
        (((OUTPUTS, INPUTS // 32, 16), "uint8"), ((OUTPUTS, INPUTS // 32), "uint8")),
    ),
    (
        q.nvfp4(),
        (
            ((OUTPUTS, INPUTS // 2), "uint8"),
            ((OUTPUTS, INPUTS // 16), "float8_e4m3fn"),
            ((), "float32"),
            ((), "float32"),
        ),
    ),
)


@pytest.mark.parametrize(
    ("scheme", "tensors"), STORED, ids=lambda value: getattr(value, "name", "")
)
def test_a_scheme_stores_these_tensors(scheme: q.Scheme, tensors: Any) -> None:
    assert scheme.weight_bytes(OUTPUTS, INPUTS) == size(*tensors)


def test_packed_integers_alone_have_several_codes_in_a_word() -> None:
    packed = [scheme.name for scheme, _ in STORED if scheme.packs]
    assert packed == ["int4 packed"]


@settings(deadline=None)  # the first example imports PyTorch
@given(rows=st.integers(1, 700), columns=st.integers(1, 700), exponents=st.booleans())
def test_blocks_are_those_of_transformers(rows: int, columns: int, exponents: bool) -> None:
    """Scales that are exponents alone (`scale_fmt: ue8m0`) take a byte."""
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        layer = module.FP8Linear(
            columns, rows, block_size=(128, 128), scale_fmt="ue8m0" if exponents else "float"
        )
    stored = sum(tensor.nbytes for tensor in layer.state_dict().values())
    section = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    if exponents:
        section["scale_fmt"] = "ue8m0"
    scheme = q.read_quantization(section, None).scheme_of("model.layers.0.self_attn.q_proj")
    assert scheme is not None
    assert scheme.weight_bytes(rows, columns) == stored


@given(rows=st.integers(1, 300), columns=st.integers(1, 300), more=st.integers(1, 300))
def test_a_larger_weight_never_takes_less(rows: int, columns: int, more: int) -> None:
    for scheme, _ in STORED:
        held = scheme.weight_bytes(rows, columns)
        assert held <= scheme.weight_bytes(rows + more, columns)
        assert held <= scheme.weight_bytes(rows, columns + more)


def quantised(section: dict[str, Any] | None, modelopt: dict[str, Any] | None = None) -> set[str]:
    """Linear layers that are stored in fewer bits, without their layer's number."""
    values = MOE | ({} if section is None else {"quantization_config": section})
    model = read_config(values, modelopt)
    assert model.unsupported == ()
    weights = ((name, w) for name, w in model.language_weights() if w.is_linear)
    return {
        ".".join(name.split(".")[3:]) or name
        for name, _ in weights
        if model.quantization.scheme_of(name) is not None
    }


ATTENTION = {f"self_attn.{part}_proj" for part in "qkvo"}
EXPERTS = {f"mlp.experts.*.{part}_proj" for part in ("gate", "up", "down")}
COVERED: tuple[tuple[dict[str, Any], set[str]], ...] = (
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ATTENTION | EXPERTS),
    ({"quant_method": "fp8", "modules_to_not_convert": []}, ATTENTION | EXPERTS | {"lm_head"}),
    # As transformers has it: a pattern is the start of a name or its end, not a part of it.
    (
        {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "self_attn", "o_proj"]},
        ATTENTION - {"self_attn.o_proj"} | EXPERTS,
    ),
    (
        {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
        },
        EXPERTS,
    ),
    ({"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["gate"]}, ATTENTION | EXPERTS),
    ({"quant_method": "gptq", "bits": 4, "lm_head": True}, ATTENTION | EXPERTS | {"lm_head"}),
    # transformers converts modules of the class Linear, and experts are one tensor.
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, ATTENTION),
    (
        {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "q_proj"]},
        ATTENTION - {"self_attn.q_proj"},
    ),
)
W4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}


@pytest.mark.parametrize(("section", "names"), COVERED)
def test_modules_stay_as_they_are_where_the_file_says(section: Any, names: set[str]) -> None:
    assert quantised(section) == names


def test_compressed_tensors_have_groups_and_exceptions() -> None:
    section = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": W4}},
        "ignore": ["lm_head", "re:.*self_attn.*"],
    }
    assert quantised(section) == EXPERTS
    assert quantised(section | {"ignore": []}) == ATTENTION | EXPERTS | {"lm_head"}
    two = {
        "attention": {"targets": ["re:.*self_attn.*"], "weights": W4},
        "others": {"targets": ["Linear"], "weights": {**W4, "type": "float", "num_bits": 8}},
    }
    model = read_config(
        MOE | {"quantization_config": section | {"config_groups": two, "ignore": []}}
    )
    names = {"model.layers.0.self_attn.q_proj": "int4 packed", "lm_head": "fp8"}
    for name, scheme in names.items():
        assert model.quantization.scheme_of(name).name == scheme  # type: ignore[union-attr]


def test_modelopt_excludes_by_globs() -> None:
    section = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16}
    excluded = {"exclude_modules": ["lm_head", "model.layers.*.self_attn*"]}
    assert quantised(None, {"quantization": section | excluded}) == EXPERTS
    assert quantised(None, {"quantization": section}) == ATTENTION | EXPERTS | {"lm_head"}
    model = read_config(MOE, {"quantization": section})
    assert model.quantization.cache == "fp8"
    half = read_config(MOE)
    assert half.weight_bytes / 4 < model.weight_bytes < half.weight_bytes


def test_names_of_multimodal_checkpoints_are_read() -> None:
    names = ["model.language_model.layers.0.self_attn.q_proj", "language_model.lm_head"]
    section = {"quant_method": "fp8", "modules_to_not_convert": names}
    model = read_config(MOE | {"quantization_config": section})
    assert model.quantization.scheme_of("model.layers.0.self_attn.q_proj") is None
    assert model.quantization.scheme_of("model.layers.1.self_attn.q_proj") is not None
    assert model.quantization.scheme_of("lm_head") is None


@pytest.mark.parametrize("method", ["hqq", "quanto", None])
def test_an_unknown_scheme_is_said(method: str | None) -> None:
    model = read_config(MOE | {"quantization_config": {"quant_method": method}})
    assert len(model.unsupported) == 1
    assert model.weight_bytes == read_config(MOE).weight_bytes


WRONG = (
    {"quant_method": "fp8", "weight_block_size": 128},
    {"quant_method": "awq", "bits": "four"},
    {"quant_method": "fp8", "modules_to_not_convert": ["(", "*"]},
    {"load_in_4bit": True, "bnb_4bit_compute_dtype": "int3"},
)


@pytest.mark.parametrize("section", WRONG)
def test_a_wrong_section_is_said_to_be_wrong(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        read_config(MOE | {"quantization_config": section})


NUMBERS = (
    ("weight_block_size", {"quant_method": "fp8", "weight_block_size": [128, "N"]}),
    ("bits", {"quant_method": "awq", "bits": "N"}),
    ("group_size", {"quant_method": "gptq", "bits": 4, "group_size": "N"}),
    ("weights.num_bits", {"quant_method": "compressed-tensors",
                          "config_groups": {"a": {"weights": {**W4, "num_bits": "N"}}}}),
    ("weights.group_size", {"quant_method": "compressed-tensors",
                            "config_groups": {"a": {"weights": {**W4, "group_size": "N"}}}}),
    ("num_bits", {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": "N"}}),
)  # fmt: skip


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "1.5", "-7", str(10**30)])
@pytest.mark.parametrize(("place", "section"), NUMBERS)
def test_a_number_that_is_no_size_is_named(
    place: str, section: dict[str, Any], number: str
) -> None:
    wrong = json.loads(json.dumps(section).replace('"N"', number))
    if place.endswith("group_size") and number == "-7":  # below 1, all inputs share a scale
        read_config(MOE | {"quantization_config": wrong})
        return
    with pytest.raises(ConfigError, match=f"quantization_config.*{place}"):
        read_config(MOE | {"quantization_config": wrong})


@pytest.mark.parametrize("bits", [1, 3, 5, 33, 64])
def test_bits_that_no_such_scheme_has_are_not_counted(bits: int) -> None:
    model = read_config(MOE | {"quantization_config": {"quant_method": "awq", "bits": bits}})
    assert model.unsupported == (f"quantization by AWQ in {bits} bits is not counted",)


def test_a_type_of_experts_beside_the_section_counts_as_one_within_it() -> None:
    """DeepSeek-V4 has it beside; its configuration class moves it into the section."""
    section = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    within = read_config({**MOE, "quantization_config": {**section, "expert_dtype": "fp4"}})
    beside = read_config({**MOE, "quantization_config": section, "expert_dtype": "fp4"})
    assert beside.weight_bytes == within.weight_bytes
    assert beside.weight_bytes < read_config({**MOE, "quantization_config": section}).weight_bytes
    assert read_config({**MOE, "expert_dtype": "fp4"}).weight_bytes == read_config(MOE).weight_bytes


def test_packed_integers_by_hand() -> None:
    """4 bits of 512 x 1024 in groups of 128: codes, scales, zeros of each group, the shape."""
    scheme = q.packed_integers(4, 128, 2, zeros=True, order=True)
    words, scales, zeros = 4 * 512 * 128, 2 * 512 * 8, 4 * 64 * 8
    assert scheme.weight_bytes(512, 1024) == words + scales + zeros + 4 * 1024 + 16
    scheme = q.packed_integers(4, 128, 2, zeros=False, order=False)
    assert scheme.weight_bytes(512, 1024) == words + scales + 16


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ({"type": "int", "num_bits": 8}, "int8 packed"),
        ({"type": "float", "num_bits": 8}, "fp8"),
        ({"type": "float", "num_bits": 8, "strategy": "channel"}, "fp8 per channel"),
        ({"type": "float", "num_bits": 4}, "NVFP4"),
        ({"type": "float", "num_bits": 4, "group_size": 32}, "MXFP4"),
    ],
)
def test_groups_of_compressed_tensors_have_the_scheme_of_type_and_bits(
    section: dict[str, Any], name: str
) -> None:
    group = {"config_groups": {"a": {"weights": section}}, "quant_method": "compressed-tensors"}
    found = read_config(MOE | {"quantization_config": group}).quantization.schemes
    assert [scheme.name for _, scheme in found] == [name]


CODES = OUTPUTS * INPUTS
FP8 = {"quant_method": "fp8"}


def compressed(weights: dict[str, Any], **activations: Any) -> dict[str, Any]:
    group: dict[str, Any] = {"targets": ["Linear"], "weights": {"num_bits": 8, **weights}}
    if activations:
        group["input_activations"] = {"num_bits": 8, **activations}
    return {"quant_method": "compressed-tensors", "config_groups": {"a": group}}


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (FP8, CODES + 4),
        ({**FP8, "activation_scheme": "dynamic"}, CODES + 4),
        ({**FP8, "activation_scheme": "static"}, CODES + 4 + 4),
        ({**FP8, "weight_block_size": [128, 64]}, CODES + 4 * 4 * 16),
        ({**FP8, "weight_block_size": [128, 64], "scale_fmt": "ue8m0"}, CODES + 4 * 16),
        (compressed({"type": "float", "strategy": "tensor"}), CODES + 2),
        (compressed({"type": "float", "strategy": "tensor"}, dynamic=True), CODES + 2),
        (compressed({"type": "float", "strategy": "tensor"}, dynamic=False), CODES + 2 + 2),
        (compressed({"type": "float", "strategy": "channel"}), CODES + 2 * OUTPUTS),
        (compressed({"type": "float", "strategy": "channel"}, dynamic=False),
         CODES + 2 * OUTPUTS + 2),
        (compressed({"type": "float", "strategy": "block", "block_structure": [128, 128]}),
         CODES + 2 * 4 * 8),
        (compressed({"type": "int", "strategy": "channel"}, dynamic=True), CODES + 2 * OUTPUTS),
        (compressed({"type": "int", "strategy": "channel"}, dynamic=False),
         CODES + 2 * OUTPUTS + 2),
        (compressed({"type": "int", "strategy": "channel"}), CODES + 2 * OUTPUTS + 16),
    ],
)  # fmt: skip
def test_scales_of_weights_and_of_static_activations_are_counted(
    section: dict[str, Any], expected: int
) -> None:
    scheme = q.read_quantization(section, None).scheme_of("model.layers.0.self_attn.q_proj")
    assert scheme is not None
    assert scheme.weight_bytes(OUTPUTS, INPUTS) == expected


@pytest.mark.parametrize(("kind", "bits"), [("float", 6), ("float", 2), ("int", 12), ("int", 64)])
def test_types_that_compressed_tensors_has_not_are_said(kind: str, bits: int) -> None:
    section = compressed({"type": kind, "num_bits": bits})
    assert len(q.read_quantization(section, None).unsupported) == 1


def test_experts_alone_are_of_4_bits_where_their_type_says_so() -> None:
    section = {**FP8, "weight_block_size": [128, 128], "expert_dtype": "fp4"}
    found = q.read_quantization(section, None)
    names = {
        "model.layers.0.self_attn.q_proj": "fp8 in blocks of 128x128",
        "model.layers.0.mlp.experts.*.up_proj": "MXFP4",
        "model.layers.0.mlp.shared_experts.up_proj": "fp8 in blocks of 128x128",
    }
    for name, expected in names.items():
        scheme = found.scheme_of(name)
        assert scheme is not None
        assert scheme.name == expected


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_has_the_type_that_the_file_names(kind: str) -> None:
    section = {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
    found = read_config(MOE | {"quantization_config": section}).quantization.schemes
    assert [scheme.name for _, scheme in found] == [f"bitsandbytes {kind}"]


def test_modelopt_s_blocks_are_of_128() -> None:
    section = {"quant_algo": "FP8_PB_WO"}
    [(_, scheme)] = read_config(MOE, {"quantization": section}).quantization.schemes
    assert scheme.weight_bytes(129, 129) == 129 * 129 + 4 * 4


ENDLESS = (r"re:(\w+\.?)*!", r"re:([a-z_.0-9]+)+!", r"re:(?:.|.){20,}!", "re:" + ".*" * 7 + "!")


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_that_match_for_ever_are_refused(pattern: str) -> None:
    weights = {"weights": {"num_bits": 4, "type": "int"}, "targets": [pattern]}
    sections: tuple[dict[str, Any], ...] = (
        {"quant_method": "fp8", "modules_to_not_convert": [pattern]},
        {"quant_method": "gptq", "dynamic": {f"-:{pattern.removeprefix('re:')}": {}}},
        {"quant_method": "compressed-tensors", "config_groups": {"a": weights}},
    )
    for section in sections:
        with pytest.raises(ConfigError, match="a pattern repeats no group"):
            read_config(MOE | {"quantization_config": section})


def test_patterns_as_released_models_have_them_are_read() -> None:
    patterns = [r"re:.*\.layers\.\d+\.mlp\.experts\.\d+\..*", "re:.*lm_head", "re:.*(q|k)_proj?"]
    section = {"quant_method": "fp8", "modules_to_not_convert": patterns}
    assert read_config(MOE | {"quantization_config": section}).quantization.method == "fp8"
