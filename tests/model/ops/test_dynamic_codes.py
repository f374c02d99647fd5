"""Dynamic codes: the published map, and codes that say what is nearest."""

import pytest
import torch
from torch import Tensor

from tritter_model.ops.dynamic_codes import decode, encode, largest_value

in_either_width = pytest.mark.parametrize("bits", [7, 8])


def published(decades: int, first_parts: int) -> Tensor:
    """The positive half of bitsandbytes' `create_dynamic_map`, without its last code, 1."""
    values: list[Tensor] = []
    for i in range(decades):
        edges = torch.linspace(0.1, 1, first_parts * 2**i + 1, dtype=torch.float64)
        values.append((edges[1:] + edges[:-1]) / 2 * 10.0 ** (i - decades + 1))
    return torch.cat(values).float()


def test_the_codes_are_the_published_map() -> None:
    """Its unsigned one has no decade with a single part; ours goes on for that one."""
    signed, unsigned = decode(torch.arange(1, 128), 7), decode(torch.arange(2, 256), 8)
    torch.testing.assert_close(signed, published(7, 1), rtol=1e-6, atol=0)
    torch.testing.assert_close(unsigned, published(7, 2), rtol=1e-6, atol=0)


@in_either_width
def test_every_code_comes_back(bits: int) -> None:
    codes = torch.arange(2**bits)
    assert torch.equal(encode(decode(codes, bits), bits).long(), codes)
    assert decode(codes, bits)[-1] == pytest.approx(largest_value(bits), rel=1e-6)


@in_either_width
def test_numbers_are_right_to_half_a_part_of_their_decade(bits: int) -> None:
    """A decade that is divided into n parts is right to 0.45 / n of its end."""
    low = 10.0 ** (1 - bits)
    x = torch.logspace(1 - bits, 0, 10_001)[:-1] * largest_value(bits)
    x = x[x > low]
    decade = 10.0 ** x.double().log10().ceil()
    parts = 2.0 ** (decade.log10() + bits - 1).round()
    error = (decode(encode(x, bits), bits) - x).abs()
    assert (error <= decade * (0.45 / parts + 1e-6)).all()


@in_either_width
def test_zero_and_what_is_nearer_to_it_than_to_the_first_code(bits: int) -> None:
    first = float(decode(torch.tensor(1), bits))
    x = torch.tensor([0.0, 0.49 * first, 0.51 * first, first])
    assert encode(x, bits).tolist() == [0, 0, 1, 1]
