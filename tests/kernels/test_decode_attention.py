"""Decode attention over the cache: the kernel against its reference, at odd shapes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache, LayerCache
from tritter_model.ops import decode_attention as module
from tritter_model.ops.append import append
from tritter_model.ops.decode_attention import (
    decode_attention,
    decode_attention_rows,
    decode_splits,
)
from tritter_model.ops.registry import use_kernels
from tritter_model.ops.rows import quantise_rows
from tritter_model.ops.tuning import tuned

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]
TYPES = ["bfloat16", "float16", "fp8", "int8", "int4", "int2"]
OTHERS = [name for name in TYPES if name != "int4"]
ERROR, COSINE = 0.01, 0.9999
"""Relative L2 error and cosine. Scaled queries and weights are rounded to bfloat16, 2^-9 each."""
OUTLIER_ERROR, OUTLIER_COSINE = 0.045, 0.999
"""A channel of outliers makes scores of some tens, whose rounding the exponential shows."""

MODEL = ModelConfig(
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    intermediate_size=64,
    vocab_size=64,
)
CASE = RunConfig(
    model=MODEL, cache=CacheConfig(group_size=32), context=150, batch=1, multiprocessors=4
)


@pytest.fixture(autouse=True)
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens are split too."""
    monkeypatch.setattr(module, "SPLIT_TOKENS", 40)


def case(dtype: str, *, batch: int = 1, group: int = 32, sinks: int = 4, **model: Any) -> RunConfig:
    cache = CacheConfig(dtype=dtype, group_size=group, attention_sinks=sinks)
    return replace(CASE, model=replace(MODEL, **model), cache=cache, batch=batch)


def some_tokens(run: RunConfig, count: int, outliers: float = 1) -> Tensor:
    """[B * count, heads, D]; one channel of keys and values is larger than the others."""
    model = run.model
    heads = model.num_attention_heads + 2 * model.num_key_value_heads
    rows = torch.randn(run.batch * count, heads, model.head_dim)
    rows[:, model.num_attention_heads :, 3] *= outliers
    return rows.to(getattr(torch, model.compute_dtype))


def decoded(run: RunConfig, both: Both, cached: int, outliers: float = 1) -> tuple[Tensor, Tensor]:
    """What kernel and reference make of one token behind `cached` ones, in float64."""
    device = torch.empty(0).device
    cache, heads = KVCache(run, device), run.model.num_attention_heads
    use_kernels(False)
    if cached:
        append(some_tokens(run, cached, outliers), cache.layers[0], cache.position, heads)
    cache.seek(cached)
    token, layer = some_tokens(run, 1, outliers), cache.layers[0]
    ours, wanted = both(
        lambda: decode_attention(
            token, layer, cache.position, cached, heads, run.multiprocessors
        ).double()
    )
    return ours, wanted


def assert_close(ours: Tensor, wanted: Tensor, most: float = ERROR, least: float = COSINE) -> None:
    error = float((ours - wanted).norm() / wanted.norm())
    cosine = float(torch.cosine_similarity(ours.flatten(), wanted.flatten(), 0))
    print(f"relative error {error:.5f}, cosine {cosine:.7f}")
    assert error <= most
    assert cosine >= least


@pytest.mark.parametrize("dtype", TYPES)
def test_a_channel_of_outliers(device: torch.device, both: Both, dtype: str) -> None:
    ours, wanted = decoded(case(dtype), both, 149, outliers=10)
    assert_close(ours, wanted, OUTLIER_ERROR, OUTLIER_COSINE)


@pytest.mark.parametrize("cached", [0, 1, 4, 5, 36, 37, 149])
def test_any_number_of_cached_tokens(device: torch.device, both: Both, cached: int) -> None:
    """None, one, only sinks, one behind them, a whole group, one over it, a partial group."""
    assert_close(*decoded(case("int4", batch=3), both, cached))


@pytest.mark.parametrize("tensor", ["keys", "values"])
@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_nan_in_8_bits_is_nan(
    device: torch.device, both: Both, monkeypatch: pytest.MonkeyPatch, tensor: str, byte: int
) -> None:
    """As where a chunk attends: neither the largest number nor beyond it."""
    filled = module.decode_attention

    def spoiled(qkv: Tensor, layer: LayerCache, *rest: Any) -> Tensor:
        getattr(layer, tensor).view(torch.uint8)[0, 0, 7, 5] = byte
        return filled(qkv, layer, *rest)

    monkeypatch.setitem(globals(), "decode_attention", spoiled)
    ours, wanted = decoded(case("fp8"), both, 100)
    assert wanted.isnan().any()
    assert not wanted.isnan().all()
    assert torch.equal(ours.isnan(), wanted.isnan())


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("cached", [0, 5, 149])
def test_caches_of_other_types(device: torch.device, both: Both, dtype: str, cached: int) -> None:
    assert_close(*decoded(case(dtype), both, cached))


@pytest.mark.parametrize("window", [1, 5, 31, 32, 33, 70, 1000])
def test_windows_end_anywhere(device: torch.device, both: Both, window: int) -> None:
    """Smaller than a group, a group, one over it; tokens that end within one or beside it."""
    cached = int(torch.randint(40, 150, ()))
    print(f"{cached} tokens")
    assert_close(*decoded(case("int4", sliding_window=window), both, cached))


@pytest.mark.parametrize("dtype", OTHERS)
def test_rings_of_other_types(device: torch.device, both: Both, dtype: str) -> None:
    assert_close(*decoded(case(dtype, sliding_window=45), both, int(torch.randint(40, 150, ()))))


@pytest.mark.parametrize(
    "shape",
    [
        {"num_key_value_heads": 1, "num_attention_heads": 1},
        {"num_key_value_heads": 1, "num_attention_heads": 40},
        {"num_key_value_heads": 8, "num_attention_heads": 8},
        {"num_key_value_heads": 32, "num_attention_heads": 32, "head_dim": 128},
        {"num_key_value_heads": 1, "num_attention_heads": 9, "head_dim": 128},
        {"head_dim": 20},
        {"head_dim": 96},
        {"weight_format": "float32"},
        {"weight_format": "float16"},
    ],
    ids=lambda shape: ",".join(f"{value}" for value in shape.values()),
)
def test_any_heads_of_any_width(device: torch.device, both: Both, shape: dict[str, Any]) -> None:
    assert_close(*decoded(case("int4", **shape), both, 40))


@pytest.mark.parametrize("shape", [{"head_dim": 96}, {"weight_format": "float32"}], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_plain_rows_of_other_shapes(
    device: torch.device, both: Both, dtype: str, shape: dict[str, Any]
) -> None:
    assert_close(*decoded(case(dtype, **shape), both, 40))


@pytest.mark.parametrize(
    ("dtype", "group", "width"),
    [
        ("int4", 8, 32), ("int4", 16, 64), ("int4", 100, 20), ("int4", 128, 128),
        ("int4", 140, 64), ("int8", 16, 32), ("int8", 100, 20), ("int2", 16, 64), ("int2", 100, 20),
    ],
)  # fmt: skip
def test_any_groups(device: torch.device, both: Both, dtype: str, group: int, width: int) -> None:
    """A few channels of a value a scale, or all; more tokens in a group than in a tile."""
    assert_close(*decoded(case(dtype, group=group, head_dim=width), both, 146))


@pytest.mark.parametrize("sinks", [0, 50])
def test_any_number_of_sinks(device: torch.device, both: Both, sinks: int) -> None:
    assert_close(*decoded(case("int4", sinks=sinks), both, 97))


@pytest.mark.parametrize("dtype", ["int4", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"num_key_value_heads": 1, "num_attention_heads": 40},
        {"num_key_value_heads": 3, "num_attention_heads": 3, "head_dim": 20},
        {"weight_format": "float16"},
    ],
    ids=str,
)
def test_rows_quantised_by_the_merge_have_the_bits_of_two_steps(
    device: torch.device, kernels: None, dtype: str, shape: dict[str, Any]
) -> None:
    """Twice in a row: the count of merged heads begins anew."""
    run = case(dtype, batch=3, **shape)
    cache, heads = KVCache(run, device), run.model.num_attention_heads
    layer = cache.layers[0]
    append(some_tokens(run, 100), layer, cache.position, heads)
    cache.seek(100)
    for _ in range(2):
        token = some_tokens(run, 1)
        work = (token, layer, cache.position, 100, heads, run.multiprocessors)
        wanted = quantise_rows(decode_attention(*work))
        for ours, part in zip(decode_attention_rows(*work), wanted, strict=True):
            assert torch.equal(ours, part)


@pytest.mark.parametrize("dtype", ["int4", "bfloat16"])
def test_three_programs_a_multiprocessor_attend_to_the_same(
    device: torch.device, both: Both, dtype: str
) -> None:
    with tuned(decode_programs=3):
        assert decode_splits(2, 146, 4) > 2 + 1
        assert_close(*decoded(case(dtype), both, 149))


@pytest.mark.parametrize(
    ("dtype", "width", "group", "shape"),
    [
        ("int8", 64, 64, {}),
        ("int8", 96, 96, {}),
        ("int8", 128, 64, {"num_key_value_heads": 1, "num_attention_heads": 9}),
        ("int8", 64, 100, {"sliding_window": 45}),
        ("int4", 128, 128, {}),
        ("int4", 200, 100, {"sliding_window": 130}),
        ("int4", 256, 64, {"weight_format": "float32"}),
    ],
)
def test_keys_and_values_read_by_pairs_of_bytes(
    device: torch.device, both: Both, dtype: str, width: int, group: int, shape: dict[str, Any]
) -> None:
    """Rows that fill their tile or not, one scale or several, groups that end within a tile."""
    run = case(dtype, group=group, head_dim=width, **shape)
    layer = KVCache(run, torch.device("meta")).layers[0]
    assert 0 < layer.groups * group <= 145  # some groups are complete
    for pairs, unit in ((True, {2}), (False, {1, 4})):
        with tuned(decode_pairs=pairs):
            assert module._form(layer, run.model.num_attention_heads)["UNIT"] in unit
            assert_close(*decoded(run, both, 149))


@pytest.mark.parametrize(("dtype", "width"), [("int4", 64), ("int2", 128), ("bfloat16", 128)])
def test_short_values_and_plain_ones_are_not_read_by_pairs(dtype: str, width: int) -> None:
    run = case(dtype, head_dim=width, group=128)
    layer = KVCache(run, torch.device("meta")).layers[0]
    wanted = module._form(layer, run.model.num_attention_heads)
    with tuned(decode_pairs=False):
        assert module._form(layer, run.model.num_attention_heads) == wanted


def test_a_launch_does_not_change_with_the_position(device: torch.device, kernels: None) -> None:
    """The operator runs at any position with the same arguments: a CUDA graph may replay it."""
    run = case("int4")
    cache = KVCache(run, device)
    layer, heads = cache.layers[0], run.model.num_attention_heads
    append(some_tokens(run, 100), layer, cache.position, heads)
    token = some_tokens(run, 1)
    cache.seek(100)
    wanted = decode_attention(token, layer, cache.position, 100, heads, run.multiprocessors)
    again = decode_attention(token, layer, cache.position, 0, heads, run.multiprocessors)
    assert torch.equal(wanted, again)
