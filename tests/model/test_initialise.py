"""Random weights: from a seed alone, in their own size."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tritter_model import vision as vision_tower
from tritter_model.config import ModelConfig
from tritter_model.ops import random_ternary
from tritter_model.ops.random_ternary import fill_packed
from tritter_model.ops.ternary import unpack
from tritter_model.transformer import Transformer

CPU, META = torch.device("cpu"), torch.device("meta")
FORMATS = ["ternary-2bit", "ternary-1.6bit", "bfloat16", "int8", "int4"]


def bits(model: Transformer) -> dict[str, bytes]:
    """Every tensor of a model, as bytes."""
    state = model.state_dict()
    return {k: bytes(v.contiguous().view(torch.uint8).flatten().tolist()) for k, v in state.items()}


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("embedding_dtype", ["bfloat16", "int8"])
def test_a_seed_gives_the_same_weights_and_another_seed_others(
    config: ModelConfig, seed: int, weight_format: str, embedding_dtype: str
) -> None:
    config = replace(config, weight_format=weight_format, embedding_dtype=embedding_dtype)
    first, again, other = (bits(Transformer(config, CPU, seed=s)) for s in (seed, seed, seed + 1))
    assert first == again
    random = [name for name in first if "norm" not in name and not name.endswith("scale")]
    assert random
    assert all(first[name] != other[name] for name in random)


def test_a_layer_s_weights_do_not_depend_on_the_others(config: ModelConfig, seed: int) -> None:
    short = bits(Transformer(replace(config, num_hidden_layers=1), CPU, seed=seed))
    long = bits(Transformer(config, CPU, seed=seed))
    assert all(long[name] == value for name, value in short.items())
    assert long["layers.0.qkv.packed"] != long["layers.1.qkv.packed"]


def test_nothing_is_left_uninitialised(
    config: ModelConfig, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is poisoned with NaN before it is filled."""
    monkeypatch.setattr(vision_tower, "LAYERS", 1)
    for vision in (False, True):
        model = Transformer(replace(config, vision=vision, weight_format="float32"), CPU, seed=seed)
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_on_meta_there_is_nothing_to_fill(config: ModelConfig, recording: Any) -> None:
    with recording() as events:
        model = Transformer(replace(config, vision=True), META)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    fills = {"random_", "normal_", "fill_", "bitwise"}
    assert not [call for call in events.calls if any(fill in call for fill in fills)]


@pytest.mark.parametrize("two_bit", [True, False])
def test_packed_weights_are_valid_and_balanced(two_bit: bool, seed: int) -> None:
    packed = torch.empty(300, 112, dtype=torch.uint8)
    fill_packed(packed, torch.Generator().manual_seed(seed), two_bit)
    codes = unpack(packed, 448 if two_bit else 560)
    shares = torch.bincount(codes.flatten(), minlength=4) / codes.numel()
    expected = [0.25, 0.5, 0.25, 0] if two_bit else [1 / 3, 1 / 3, 1 / 3, 0]
    assert shares[3] == 0
    torch.testing.assert_close(shares, torch.tensor(expected), rtol=0, atol=0.01)


def test_packed_weights_are_put_right_a_slice_at_a_time(
    seed: int, monkeypatch: pytest.MonkeyPatch, recording: Any
) -> None:
    """What is made on the way is one slice, whatever the weights' size."""
    monkeypatch.setattr(random_ternary, "SLICE", 1000)
    packed = torch.empty(300, 100, dtype=torch.uint8)
    packed.random_(0, 256, generator=torch.Generator().manual_seed(seed))
    with recording() as events:  # of the reference: a recording does not see inside an operator
        random_ternary._without_threes.reference(packed)
    assert {made.nbytes for made in events.made} == {1000}
    assert len(events.made) == 30
    assert (unpack(packed, 400) < 3).all()
