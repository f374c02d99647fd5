"""The table of formats: what it says is what the bundled model stores."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tritter_mem.config.json_schema import profile_json_schema
from tritter_mem.models.formats import FORMATS, compute_format, formats_for, storage_format
from tritter_model.config import QUANTISED_KV_BITS, TERNARY_FORMATS, ModelConfig
from tritter_model.ops.ternary_format import packed_width


def test_names_are_unique() -> None:
    assert len({row.name for row in FORMATS}) == len(FORMATS)


def test_ternary_formats_are_the_model_s() -> None:
    assert tuple(row.name for row in FORMATS if row.is_ternary) == TERNARY_FORMATS


@settings(deadline=None)
@given(inputs=st.integers(17, 70_000), name=st.sampled_from(TERNARY_FORMATS))
def test_packed_rows_are_as_wide_as_the_model_s(inputs: int, name: str) -> None:
    assert storage_format(name).packed_row_bytes(inputs) == packed_width(inputs, name)


def test_quantised_caches_are_the_model_s() -> None:
    names = formats_for("kv_cache")
    rows = {name: int(storage_format(name).bits) for name in names}
    quantised = {n: bits for n, bits in rows.items() if not storage_format(n).is_float}
    assert quantised == QUANTISED_KV_BITS


@pytest.mark.parametrize("name", [row.name for row in FORMATS if row.is_float])
def test_floats_are_as_wide_as_pytorch_s(name: str) -> None:
    dtype = torch.float8_e4m3fn if name == "fp8" else getattr(torch, name)
    assert storage_format(name).element_bytes == dtype.itemsize


@pytest.mark.parametrize("name", formats_for("weights"))
def test_activations_have_the_model_s_type(name: str) -> None:
    widths = dict.fromkeys(
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim", "intermediate_size", "vocab_size"), 1)  # fmt: skip
    config = ModelConfig(**widths, weight_format=name)
    assert compute_format(storage_format(name)).name == config.compute_dtype


def test_a_row_of_the_table_is_a_choice_in_profiles() -> None:
    fields = profile_json_schema()["anyOf"][0]["properties"]
    assert fields["weights"]["properties"]["format"]["enum"] == list(formats_for("weights"))
    assert fields["kv_cache"]["properties"]["dtype"]["enum"] == list(formats_for("kv_cache"))


@settings(deadline=None)
@given(outputs=st.integers(1, 500), inputs=st.integers(1, 5000))
def test_fewer_bits_never_take_more(outputs: int, inputs: int) -> None:
    """From a row of some length on, where scales do not outweigh the codes."""
    rows = sorted((storage_format(name) for name in formats_for("weights")), key=lambda r: r.bits)
    for less, more in pairwise(rows):
        scales = outputs * (less.scale_bytes * -(-inputs // (less.group or inputs)) + less.row_unit)
        assert less.weight_bytes(outputs, inputs) <= more.weight_bytes(outputs, inputs) + scales
