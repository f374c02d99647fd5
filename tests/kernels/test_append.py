"""Kernels that put tokens into the cache: every byte is that of the reference."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.places import at
from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache, LayerCache
from tritter_model.ops.angles import rotary_angles
from tritter_model.ops.append import _append, append
from tritter_model.ops.decode_attention import decode_attention
from tritter_model.ops.registry import use_kernels
from tritter_model.ops.rotary import Heads, rotate_
from tritter_model.ops.rotate_append import rotate_append_

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]
PLAIN, QUANTISED = ["bfloat16", "float16", "fp8"], ["int8", "int4", "int2"]
SHAPES = [(3, 1, 64), (1, 8, 128), (1, 32, 20)]
"""Sequences, key-value heads, and their width."""


def layer(
    dtype: str, shape: tuple[int, int, int] = (1, 1, 20), group: int = 16, sinks: int = 4,
    window: int | None = None, context: int = 56,
) -> LayerCache:  # fmt: skip
    """One layer's cache, full of NaN and of the largest codes."""
    batch, kv_heads, width = shape
    model = ModelConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2 * kv_heads,
        num_key_value_heads=kv_heads, head_dim=width, intermediate_size=8, vocab_size=8,
        sliding_window=window,
    )  # fmt: skip
    cache = CacheConfig(dtype=dtype, group_size=group, attention_sinks=sinks)
    run = RunConfig(model=model, cache=cache, context=context, batch=batch)
    return KVCache(run, torch.empty(0).device).layers[0]


def some_tokens(cache: LayerCache, tokens: int) -> Tensor:
    """Of every sequence, with channels that are ten and a thousand times the others."""
    kv_heads, width = cache.kv_heads, cache.sink_keys.shape[3]
    qkv = torch.randn(cache.batch * tokens, 4 * kv_heads, width)
    qkv[..., 1] *= 10
    qkv[..., width // 2] *= 1000
    return qkv.to(cache.sink_keys.dtype)


def filled(cache: LayerCache, qkv: Tensor, chunks: list[int]) -> list[Tensor]:
    """The bytes of a new cache of that kind, once tokens came in chunks."""
    new = replace(cache, **{f.name: getattr(cache, f.name).clone() for f in fields(cache)[3:]})
    by_sequence, position = qkv.unflatten(0, (cache.batch, -1)), 0
    for chunk in by_sequence.split(chunks, 1):
        append(chunk.flatten(0, 1), new, at(position), 2 * cache.kv_heads)
        position += chunk.shape[1]
    return [tensor.view(torch.uint8) for tensor in new.tensors()]


def assert_same(got: list[Tensor], wanted: list[Tensor]) -> None:
    for field, ours, theirs in zip(fields(LayerCache)[3:], got, wanted, strict=True):
        assert torch.equal(ours, theirs), field.name


@pytest.mark.parametrize("dtype", [*PLAIN, *QUANTISED])
@pytest.mark.parametrize(("window", "sinks"), [(None, 4), (5, 4), (16, 0), (23, 4)])
def test_chunks_leave_the_bytes_of_the_reference(
    device: torch.device, both: Both, dtype: str, window: int | None, sinks: int
) -> None:
    """Sinks and more at once, one token, one over a group, several groups, one over the ring."""
    cache = layer(dtype, window=window, sinks=sinks)
    qkv, chunks = some_tokens(cache, 56), [7, 1, 17, 24, 6, 1]
    assert_same(*both(lambda: filled(cache, qkv, chunks)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["fp8", "int4"])
def test_every_head_of_every_sequence_has_its_place(
    device: torch.device, both: Both, dtype: str, shape: tuple[int, int, int]
) -> None:
    cache = layer(dtype, shape)
    qkv = some_tokens(cache, 21)
    assert_same(*both(lambda: filled(cache, qkv, [20, 1])))


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize(("group", "tokens"), [(8, 17), (32, 37), (40, 45)])
def test_groups_share_scales_whatever_their_size(
    device: torch.device, both: Both, dtype: str, group: int, tokens: int
) -> None:
    """Groups of channels are smaller than a head, as wide, or one for all of it."""
    cache = layer(dtype, (1, 2, 32), group=group)
    qkv = some_tokens(cache, tokens)
    assert_same(*both(lambda: filled(cache, qkv, [tokens])))


@pytest.mark.parametrize("start", [0, 3, 4, 19, 20, 36])
def test_single_tokens_go_on_where_a_chunk_ended(
    device: torch.device, both: Both, start: int
) -> None:
    """Around the sinks, the end of a group, and the window's edge."""
    cache = layer("int4", window=16)
    qkv = some_tokens(cache, start + 2)
    assert_same(*both(lambda: filled(cache, qkv, [start, 1, 1] if start else [1, 1])))


@pytest.mark.parametrize("dtype", ["int8", "int2"])
@pytest.mark.parametrize("compute", [torch.float16, torch.float32], ids=str)
def test_activations_of_other_types_are_taken(
    device: torch.device, both: Both, dtype: str, compute: torch.dtype
) -> None:
    cache = layer(dtype)
    plain = {
        name: getattr(cache, name).to(compute) for name in ("sink_keys", "sink_values", "tail")
    }
    cache = replace(cache, **plain)
    qkv = some_tokens(cache, 21)
    assert_same(*both(lambda: filled(cache, qkv, [21])))


def test_too_many_heads_for_a_grid_are_refused() -> None:
    """CUDA would refuse the launch without saying why."""
    with torch.device("meta"):
        cache = layer("bfloat16", (40_000, 2, 20))
        qkv, position = some_tokens(cache, 1), torch.empty(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"got 40000 sequences of 2 heads.*expected 65535"):
        _append.launch(qkv, position, 4, cache.layout(), cache.tensors())


@pytest.mark.parametrize("dtype", PLAIN)
def test_every_number_is_stored_as_the_reference_stores_it(
    device: torch.device, both: Both, dtype: str
) -> None:
    """All normal bfloat16 numbers, and infinities: 448 is fp8's largest.

    Smaller ones are left out: the interpreter does not read them right.
    """
    cache = layer(dtype, (1, 1, 2048), sinks=0, context=33)
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    every[every.isnan() | (every.abs() < torch.finfo(torch.bfloat16).tiny)] = 0
    qkv = every.view(32, 1, 2048).expand(32, 4, 2048).contiguous()
    assert_same(*both(lambda: filled(cache, qkv, [32])))


@pytest.mark.parametrize(
    ("dtype", "normed"),
    [("fp8", True), ("int8", True), ("int4", True), ("int4", False), ("int2", True)],
)
def test_rotating_and_appending_at_once_is_one_after_the_other(
    device: torch.device, both: Both, dtype: str, normed: bool
) -> None:
    """From the sinks to the end of a group, and where the ring turns.

    The bytes are those of appending what was rotated.
    """
    cache, tokens = layer(dtype, (2, 1, 20), group=8, window=7), 13
    heads = Heads(2, 2, 1, 500_000.0, 1e-5)
    steps = some_tokens(cache, tokens).view(tokens, 2, 4, 20)
    norms = torch.randn(2, 20).bfloat16() if normed else None
    fused, apart, other = (
        replace(cache, **{f.name: getattr(cache, f.name).clone() for f in fields(cache)[3:]})
        for _ in range(3)
    )
    for position, qkv in enumerate(steps):
        use_kernels(True)
        alone = rotate_(qkv.clone(), norms, heads, at(position))
        angles = rotary_angles(at(position), 1, 20, heads.theta)
        at_hand = rotate_append_(qkv.clone(), norms, heads, at(position), other, angles)
        assert rotate_append_(qkv, norms, heads, at(position), fused) is qkv
        assert torch.equal(at_hand, qkv)
        torch.testing.assert_close(qkv, alone, rtol=2**-7, atol=1e-3)
        assert torch.equal(qkv[:, 3:], alone[:, 3:])
        use_kernels(False)
        append(qkv, apart, at(position), 2)
    use_kernels(None)
    bytes_of = [[t.view(torch.uint8) for t in one.tensors()] for one in (fused, apart, other)]
    assert_same(*bytes_of[:2])
    assert_same(*bytes_of[::2])


@pytest.mark.parametrize("dtype", ["fp8", *QUANTISED])
@pytest.mark.parametrize(("window", "sinks"), [(None, 4), (8, 0), (5, 4), (23, 4)])
def test_a_token_may_be_appended_before_it_attends(
    device: torch.device, dtype: str, window: int | None, sinks: int
) -> None:
    """It sees the same: at the end of a group, where the ring turns, within the sinks."""
    cache, tokens = layer(dtype, (2, 1, 20), group=8, window=window, sinks=sinks), 40
    qkv = some_tokens(cache, tokens).view(tokens, 2, 4, 20)
    use_kernels(False)
    for position, token in enumerate(qkv):
        outs = []
        for step in ("before", "after"):
            outs.append(decode_attention(token, cache, at(position), position, 2, 3))
            if step == "before":
                append(token, cache, at(position), 2)
        assert torch.equal(*outs), position
    use_kernels(None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cache: append(torch.ones(2, 4, 20), cache, at(0), 2),
         r"got the new tokens of float32 \[2, 4, 20\], expected bfloat16 \[any, 4, 20\]"),
        (lambda cache: append(torch.ones(2, 4, 16).bfloat16(), cache, at(0), 2),
         r"got the new tokens of bfloat16 \[2, 4, 16\]"),
        (lambda cache: append(torch.ones(2, 4, 20).bfloat16(), cache, at(0).long(), 2),
         r"got the position of int64 \[1\], expected int32 \[1\]"),
        (lambda cache: append(torch.ones(3, 4, 20).bfloat16(), cache, at(0), 2),
         "got 3 tokens for 2 sequences, expected as many of each"),
        (lambda cache: append(
            torch.ones(2, 4, 20).bfloat16(), replace(cache, keys=cache.keys.mT), at(0), 2),
         "got the cache with strides"),
        (lambda cache: rotate_append_(
            torch.ones(4, 4, 20).bfloat16(), None, Heads(2, 2, 1, 1e4, 1e-5), at(0), cache),
         "got 4 tokens for 2 sequences, expected one of each; a chunk attends before"),
    ],
)  # fmt: skip
def test_what_a_kernel_does_not_take_is_refused(
    device: torch.device, kernels: None, call: Callable[[LayerCache], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(layer("int4", (2, 1, 20)))
