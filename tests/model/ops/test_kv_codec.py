"""The cache's codec: packing is lossless, and its error stays below a stated bound."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tritter_model.ops import kv_codec

at_every_width = pytest.mark.parametrize("bits", [8, 4, 2])

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda x: x,
    "outliers": lambda x: torch.where(torch.arange(x.shape[-1]) < 4, 10 * x, x),
    "offset": lambda x: x + 100,
    "constant": lambda x: torch.full_like(x, 3.1416),
    "zero": torch.zeros_like,
    "tiny": lambda x: x * 1e-7,
    "large": lambda x: x * 3000,
}
of_every_kind = pytest.mark.parametrize("kind", KINDS)


def error_bound(x: Tensor, bits: int, dim: int) -> Tensor:
    """What the format promises, for each group.

    Half a step where nothing is clamped. At the ends, what rounding the minimum and the scale to
    float16 moves: 2^-11 of each, and half of the smallest float16 where they are subnormal. A step
    is no smaller than 1e-6.
    """
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    levels, spread = 2**bits - 1, high - low
    step = (spread / levels).clamp(min=1e-6)
    ends = 2**-11 * (spread + low.abs()) + (levels + 1) * 2**-25
    return step * (0.5 + 2**-11) + ends + 1e-6 * x.abs().amax()


@at_every_width
def test_unpacking_gives_what_was_packed(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 2, 5, 24), dtype=torch.uint8)
    packed = kv_codec.pack(codes, bits)
    assert packed.shape == (3, 2, 5, 24 * bits // 8)
    assert torch.equal(kv_codec.unpack(packed, bits), codes)


@at_every_width
def test_planes_of_channels_share_a_byte(bits: int) -> None:
    """Byte d holds channels d, d + D·bits/8, and so on, the first in the lowest bits."""
    codes = torch.randint(0, 2**bits, (24,), dtype=torch.uint8)
    width = 24 * bits // 8
    for d, byte in enumerate(kv_codec.pack(codes, bits).tolist()):
        parts = [int(codes[d + i * width]) << (bits * i) for i in range(8 // bits)]
        assert byte == sum(parts)


@at_every_width
@of_every_kind
def test_keys_are_right_to_the_bound_of_their_channel(bits: int, kind: str) -> None:
    x = KINDS[kind](torch.randn(3, 2, 17, 24))
    packed, scale, minimum = kv_codec.quantise_key_group(x, bits)
    assert scale.shape == minimum.shape == (3, 2, 24)
    assert scale.dtype == minimum.dtype == torch.float16
    back = kv_codec.dequantise_keys(packed, scale[:, :, None], minimum[:, :, None], bits)
    assert ((back - x).abs() <= error_bound(x, bits, 2)).all()


@at_every_width
@of_every_kind
@pytest.mark.parametrize("group", [8, 12, 24])
def test_values_are_right_to_the_bound_of_their_token(bits: int, kind: str, group: int) -> None:
    x = KINDS[kind](torch.randn(3, 2, 17, 24))
    packed, scale, minimum = kv_codec.quantise_values(x, bits, group)
    assert scale.shape == minimum.shape == (3, 2, 17, 24 // group)
    back = kv_codec.dequantise_values(packed, scale, minimum, bits)
    bound = error_bound(x.unflatten(-1, (-1, group)), bits, -1)
    assert ((back - x).unflatten(-1, (-1, group)).abs() <= bound).all()


@at_every_width
def test_an_outlier_channel_costs_the_other_channels_of_a_key_nothing(bits: int) -> None:
    x = torch.randn(2, 17, 24)
    spoiled = x.clone()
    spoiled[..., 5] *= 1000
    others = torch.arange(24) != 5
    outs = []
    for keys in (x, spoiled):
        packed, scale, minimum = kv_codec.quantise_key_group(keys, bits)
        back = kv_codec.dequantise_keys(packed, scale[:, None], minimum[:, None], bits)
        outs.append(back[..., others])
    assert torch.equal(*outs)
