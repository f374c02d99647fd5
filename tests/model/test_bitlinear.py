"""Linear layers in every storage: packing is exact, and nothing of a weight's size is kept."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tritter_model.bitlinear import (
    BitLinear,
    Int4Linear,
    Int8Linear,
    Linear,
    PackedBitLinear,
    Table,
    make_linear,
)
from tritter_model.config import ModelConfig
from tritter_model.ops import dense
from tritter_model.ops.rows import quantise_rows

CPU, META = torch.device("cpu"), torch.device("meta")
TERNARY = ["ternary-2bit", "ternary-1.6bit"]
FLOATS = ["bfloat16", "float16", "float32"]


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed + 1)  # not the stream that `torch.randn` draws from


@pytest.mark.parametrize("weight_format", TERNARY)
@pytest.mark.parametrize("master", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 2, 16, 17])
def test_a_packed_layer_computes_the_bits_of_the_trained_one(
    config: ModelConfig, generator: Any, weight_format: str, master: str, tokens: int
) -> None:
    config = replace(config, weight_format=weight_format, master_dtype=master)
    trained = BitLinear(83, 37, config, CPU)
    trained.reset(generator)
    packed = trained.packed_for(config)
    x = torch.randn(tokens, 83).bfloat16()
    assert torch.equal(packed(x), trained(x))
    assert torch.equal(packed(quantise_rows(x)), packed(x))
    per_byte = 4 if weight_format == "ternary-2bit" else 5
    assert packed.packed.nbytes == 37 * -(-83 // per_byte)


@pytest.mark.parametrize("weight_format", TERNARY)
def test_random_packed_weights_have_the_variance_of_the_trained_ones(
    config: ModelConfig, generator: Any, weight_format: str
) -> None:
    layer = PackedBitLinear(400, 300, replace(config, weight_format=weight_format), CPU)
    layer.reset(generator)
    assert_unit_variance(layer, 400)


@pytest.mark.parametrize(
    "make",
    [
        lambda c: Linear(400, 300, dtype=torch.float32),
        lambda c: Int8Linear(400, 300, CPU),
        lambda c: Int4Linear(400, 300, CPU),
    ],
    ids=["float32", "int8", "int4"],
)
def test_random_weights_have_variance_one_over_their_inputs(
    config: ModelConfig, generator: Any, make: Any
) -> None:
    layer = make(config)
    layer.reset(generator)
    assert_unit_variance(layer, 400)


def assert_unit_variance(layer: torch.nn.Module, inputs: int) -> None:
    """Outputs of unit inputs have variance one, to five standard errors of 4,800 outputs."""
    out = layer(torch.randn(16, inputs).bfloat16()).double()
    assert abs(out.var() - 1) < 5 * (2 / out.numel()) ** 0.5 + 0.02


@pytest.mark.parametrize("weight_format", [*TERNARY, *FLOATS, "int8", "int4"])
def test_each_format_stores_what_it_says(config: ModelConfig, weight_format: str) -> None:
    config = replace(config, weight_format=weight_format)
    layer = make_linear(300, 200, config, META, trainable=False)
    stored = [*layer.parameters(), *layer.buffers()]
    expected = {
        "ternary-2bit": 200 * 75 + 200 * 4,
        "ternary-1.6bit": 200 * 60 + 200 * 4,
        "int8": 200 * 300 + 200 * 4,
        "int4": 200 * 150 + 200 * 3 * 2,
        "bfloat16": 200 * 300 * 2,
        "float16": 200 * 300 * 2,
        "float32": 200 * 300 * 4,
    }
    assert sum(tensor.nbytes for tensor in stored) == expected[weight_format]
    assert not any(tensor.requires_grad for tensor in stored)


@pytest.mark.parametrize("weight_format", [*TERNARY, *FLOATS])
@pytest.mark.parametrize("master", ["float32", "bfloat16"])
def test_training_holds_master_weights_and_keeps_no_other_copy(
    config: ModelConfig, saved: Any, generator: Any, weight_format: str, master: str
) -> None:
    config = replace(config, weight_format=weight_format, master_dtype=master)
    layer = make_linear(300, 200, config, CPU, trainable=True)
    layer.reset(generator)
    (weight,) = layer.parameters()
    assert (weight.dtype, weight.requires_grad) == (getattr(torch, master), True)
    x = torch.randn(5, 300, dtype=getattr(torch, config.compute_dtype), requires_grad=True)
    with saved(besides=[x, weight]) as kept:
        out = layer(x)
    assert kept.nbytes == 0
    out.sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_integer_weights_are_not_trained(config: ModelConfig, weight_format: str) -> None:
    config = replace(config, weight_format=weight_format)
    with pytest.raises(ValueError, match=f"{weight_format} weights cannot be trained"):
        make_linear(300, 200, config, META, trainable=True)


@pytest.mark.parametrize("embedding_dtype", [*FLOATS, "int8"])
def test_a_stored_table_gives_the_trained_rows_in_its_type(
    config: ModelConfig, generator: Any, embedding_dtype: str
) -> None:
    config = replace(config, embedding_dtype=embedding_dtype)
    trained, stored = Table(config, CPU, trainable=True), Table(config, CPU, trainable=False)
    trained.reset(generator)
    stored.store(trained.weight)
    ids = torch.arange(config.vocab_size)
    rows = stored.embed(ids, None, torch.float32)
    if embedding_dtype == "int8":
        codes, scale = dense.quantise_int8(trained.weight.data)
        assert torch.equal(rows, codes * scale[:, None])
    else:
        assert torch.equal(rows, trained.weight.to(stored.weight.dtype).float())
