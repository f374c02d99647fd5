"""The cache's size, and where its tokens lie however they come in."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.places import at, attended
from tritter_model.config import CacheConfig, RunConfig
from tritter_model.kv_cache import KVCache, LayerCache
from tritter_model.ops import kv_codec
from tritter_model.ops.append import append

CPU, META = torch.device("cpu"), torch.device("meta")
BITS = {"bfloat16": 16, "float16": 16, "fp8": 8, "int8": 8, "int4": 4, "int2": 2}
QUANTISED = ["int8", "int4", "int2"]
WINDOWS = [None, 1, 5, 16, 23, 1000]  # of groups of 16 and a context of 56
of_every_type = pytest.mark.parametrize("dtype", BITS)
in_every_window = pytest.mark.parametrize("window", WINDOWS)
with_and_without_sinks = pytest.mark.parametrize("sinks", [0, 4])


@pytest.fixture
def case(run: RunConfig, with_model: Any) -> Any:
    """`case(dtype, window, sinks)`: three sequences of 56 tokens, groups of 16."""

    def make(dtype: str, window: int | None, sinks: int) -> RunConfig:
        cache = CacheConfig(dtype=dtype, group_size=16, attention_sinks=sinks)
        return with_model(replace(run, cache=cache, batch=3), sliding_window=window)

    return make


def layer(run: RunConfig, device: torch.device = CPU) -> LayerCache:
    return KVCache(run, device).layers[0]


def formula(run: RunConfig, window: int | None) -> int:
    """Bytes of one layer, written down from the description of the format."""
    sinks, group, width = run.cache.attention_sinks, run.cache.group_size, run.model.head_dim
    behind = max(0, run.context - sinks)
    tokens = behind if window is None else min(window, behind)
    a_head = 2 * sinks * width * 2
    if run.cache.dtype not in QUANTISED:
        a_head += 2 * tokens * width * BITS[run.cache.dtype] // 8
    else:
        groups = min(-(-tokens // group), behind // group)
        packed = (groups * group + tokens) * width * BITS[run.cache.dtype] // 8
        value_scales = tokens * (width // min(group, width)) * 2 * 2
        a_head += packed + groups * width * 2 * 2 + value_scales + group * width * 2
    return run.batch * run.model.num_key_value_heads * a_head


@of_every_type
@in_every_window
@with_and_without_sinks
@pytest.mark.parametrize("device", [CPU, META], ids=str)
def test_bytes_are_those_of_the_storages_and_of_the_formula(
    case: Any, dtype: str, window: int | None, sinks: int, device: torch.device
) -> None:
    for context in (1, 4, 5, 20, 21, 56, 200):
        run = replace(case(dtype, window, sinks), context=context)
        cache = KVCache(run, device)
        tensors = [tensor for each in cache.layers for tensor in each.tensors()]
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        assert cache.nbytes == sum(storages.values()) == 2 * formula(run, window)
        assert len(storages) == len(tensors)


@pytest.mark.parametrize(("kv_heads", "per_token"), [(32, 139_264), (8, 34_816)])
def test_a_7b_cache_takes_the_published_bytes_a_token(
    run: RunConfig, with_model: Any, kv_heads: int, per_token: int
) -> None:
    """INT4 in groups of 128, 32 layers of heads of 128: 4.25 bits an element, and the tail."""
    sizes = {"num_hidden_layers": 32, "num_key_value_heads": kv_heads, "head_dim": 128}
    run = with_model(run, num_attention_heads=32, **sizes)
    run = replace(run, cache=CacheConfig(), context=4 + 1024 * 128)
    sinks_and_tail = 32 * kv_heads * 128 * 2 * (2 * 4 + 128)
    assert KVCache(run, META).nbytes == per_token * 1024 * 128 + sinks_and_tail


def some_tokens(run: RunConfig, tokens: int) -> Tensor:
    heads = run.model.num_attention_heads + 2 * run.model.num_key_value_heads
    return torch.randn(run.batch, tokens, heads, run.model.head_dim).bfloat16()


def append_in(run: RunConfig, x: Tensor, chunks: list[int], into: LayerCache) -> None:
    position = 0
    for chunk in x.split(chunks, 1):
        append(chunk.flatten(0, 1), into, at(position), run.model.num_attention_heads)
        position += chunk.shape[1]


def random_chunks(tokens: int) -> list[int]:
    chunks: list[int] = []
    while sum(chunks) < tokens:
        chunks.append(int(torch.randint(1, min(24, tokens - sum(chunks)) + 1, ())))
    return chunks


def same_bytes(one: LayerCache, other: LayerCache) -> bool:
    """Whether every tensor is equal, bit for bit, memory that was never written included."""
    pairs = zip(one.tensors(), other.tensors(), strict=True)
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


@of_every_type
@in_every_window
@with_and_without_sinks
def test_tokens_lie_alike_however_they_are_chunked(
    case: Any, dtype: str, window: int | None, sinks: int
) -> None:
    run = case(dtype, window, sinks)
    for tokens in (3, 21, 56):
        x, whole = some_tokens(run, tokens), layer(run)
        append_in(run, x, [tokens], whole)
        for chunks in ([1] * tokens, random_chunks(tokens)):
            parts = layer(run)
            append_in(run, x, chunks, parts)
            assert same_bytes(whole, parts), chunks


@pytest.mark.parametrize("dtype", QUANTISED)
@in_every_window
@with_and_without_sinks
def test_each_group_of_keys_is_quantised_once(
    case: Any, dtype: str, window: int | None, sinks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls, original = case(dtype, window, sinks), [], kv_codec.quantise_key_group

    def spy(tail: Tensor, bits: int) -> Any:
        calls.append(tail.clone())
        return original(tail, bits)

    monkeypatch.setattr(kv_codec, "quantise_key_group", spy)
    x = some_tokens(run, 56)
    append_in(run, x, random_chunks(56), layer(run))
    keys = x[:, sinks:, run.model.num_attention_heads :][:, :, : run.model.num_key_value_heads]
    groups = keys.transpose(1, 2).split(16, 2)[: (56 - sinks) // 16]
    assert len(calls) == len(groups)
    assert all(torch.equal(got, wanted) for got, wanted in zip(calls, groups, strict=True))


@of_every_type
@with_and_without_sinks
def test_what_is_stored_stays_as_it_is(case: Any, dtype: str, sinks: int) -> None:
    """Without a window nothing but the tail is ever written twice."""
    run = case(dtype, None, sinks)
    x, cache = some_tokens(run, 56), layer(run)
    append_in(run, x[:, :40], [40], cache)
    before = [tensor.clone() for tensor in cache.tensors()]
    append(x[:, 40:].flatten(0, 1), cache, at(40), run.model.num_attention_heads)
    groups, values = (40 - sinks) // 16, 40 - sinks
    filled = {"keys": groups * 16 if cache.bits else values, "values": values}
    filled |= {"sink_keys": sinks, "sink_values": sinks, "tail": 0}
    filled |= {"key_scale": groups, "key_minimum": groups}
    filled |= {"value_scale": values, "value_minimum": values}
    for (name, rows), old, new in zip(filled.items(), before, cache.tensors(), strict=True):
        kept, now = (t[:, :, :rows].contiguous().view(torch.uint8) for t in (old, new))
        assert torch.equal(kept, now), name


@of_every_type
@with_and_without_sinks
@pytest.mark.parametrize("window", WINDOWS[1:])
def test_a_ring_holds_just_what_the_window_shows(
    case: Any, dtype: str, sinks: int, window: int
) -> None:
    """Attention over the ring equals attention, masked, over a cache of the whole context."""
    ring_run, heads = case(dtype, window, sinks), 4
    ring, whole = layer(ring_run), replace(layer(case(dtype, None, sinks)), window=window)
    assert ring.slots == min(window, 56 - sinks)
    x, position = some_tokens(ring_run, 56), 0
    for chunk in x.split(random_chunks(56), 1):
        rows = chunk.flatten(0, 1)
        outs = [attended(rows, cache, position, heads) for cache in (ring, whole)]
        assert torch.equal(*outs)
        for cache in (ring, whole):
            append(rows, cache, at(position), heads)
        position += chunk.shape[1]


def test_values_beyond_a_narrow_type_are_cut_off_at_its_largest_number(case: Any) -> None:
    run = case("fp8", None, 0)
    x, cache = some_tokens(run, 2), layer(run)
    x[:, 0], x[:, 1] = 1e30, -1e30
    append_in(run, x, [2], cache)
    for stored in (cache.keys, cache.values):
        assert (stored[:, :, 0].float() == 448).all()
        assert (stored[:, :, 1].float() == -448).all()
