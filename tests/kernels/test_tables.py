"""Kernels on tables: embeddings, their gradient, and weights expanded for a product."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_model.ops import embedding
from tritter_model.ops.dense import quantised_linear
from tritter_model.ops.embedding import embed
from tritter_model.ops.expand import expand, int4_groups

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]
TYPES = [torch.bfloat16, torch.float16, torch.float32]
in_every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
of_every_width = pytest.mark.parametrize("width", [1, 34, 4099])


def some_ids(tokens: int, vocabulary: int) -> Tensor:
    """A few tokens: one that comes again and again, others; and many places without one."""
    ids = torch.full((tokens,), -100)
    ids[2:5] = torch.randint(0, vocabulary, (3,))
    ids[-3:] = vocabulary - 1
    return ids


@of_every_width
@in_every_type
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_embedding_is_its_reference(
    device: torch.device, both: Both, width: int, dtype: torch.dtype, stored: torch.dtype
) -> None:
    """Bit for bit; rows without a token are left as they are."""
    table, scale, ids = (torch.randn(7, width) * 9).to(stored), torch.rand(7), some_ids(17, 7)
    scales = scale if stored == torch.int8 else None
    ours, theirs = both(
        lambda: embed(ids, table, scales, None, torch.full((17, width), 3.0).to(dtype))
    )
    assert torch.equal(ours, theirs)
    assert (ours[:2] == 3).all()


def test_ids_may_lie_apart(device: torch.device, both: Both) -> None:
    """As those of the last token of each sequence do; the same rows, and the same gradient."""
    ids = torch.arange(12).view(3, 4)[:, -1]
    table, grad = torch.randn(12, 34), torch.randn(3, 34)

    def rows() -> tuple[Tensor, Tensor]:
        sums = torch.empty_like(table)
        embedding._embed_backward(grad, ids, sums)
        return embed(ids, table, None, None, torch.empty(3, 34)), sums

    ours, theirs = both(rows)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[0], table[3::4])
    torch.testing.assert_close(ours[1], theirs[1])


def test_an_id_beyond_the_table_is_never_read(device: torch.device, kernels: None) -> None:
    table, out = torch.ones(7, 34), torch.ones(3, 34)
    embed(torch.tensor([1, 7, 2]), table, None, None, out)
    assert out.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("width", [34, 4099])
@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16], ids=str)
def test_a_table_s_gradient_is_its_reference(
    device: torch.device, both: Both, width: int, master: torch.dtype
) -> None:
    """With more tokens than are looked through at once."""
    ids, grad = some_ids(1100, 3), torch.randn(width, 1100).bfloat16().T

    def gradient() -> Tensor:
        table = torch.empty(3, width, dtype=master)
        embedding._embed_backward(grad, ids, table)
        return table

    ours, theirs = both(gradient)
    rounding = max(torch.finfo(master).eps, 1e-5)
    torch.testing.assert_close(ours, theirs, rtol=rounding, atol=1e-4)


@of_every_width
@in_every_type
def test_expanded_weights_are_those_of_the_reference(
    device: torch.device, both: Both, width: int, dtype: torch.dtype
) -> None:
    """Bit for bit, int8 and int4."""
    codes, scale = torch.randint(-128, 128, (5, width)).to(torch.int8), torch.rand(5)
    packed = torch.randint(0, 256, (5, -(-width // 2))).to(torch.uint8)
    groups = torch.rand(5, int4_groups(width)).half()
    for arguments in ((codes, scale), (packed, groups)):
        ours, theirs = both(lambda arguments=arguments: expanded(*arguments, width, dtype))
        assert torch.equal(ours, theirs)


def expanded(codes: Tensor, scale: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    out = torch.empty(5, width, dtype=dtype)
    expand(codes, scale, out)
    return out


def test_a_product_takes_blocks_of_expanded_weights(
    device: torch.device, both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tritter_model.ops.dense.EXPANDED_ROWS", 3)
    x, codes = torch.randn(2, 34), torch.randint(-128, 128, (7, 34)).to(torch.int8)
    scale = torch.rand(7)
    for got in both(lambda: quantised_linear(x, codes, scale)):
        torch.testing.assert_close(got, x @ (codes * scale[:, None]).T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda ids, table, out: embed(ids.int(), table, None, None, out), "ids of int32"),
        (lambda ids, table, out: embed(ids, table, None, None, out[:1]), r"the result .*\[1, 8\]"),
        (lambda ids, table, out: embed(ids, table[:, ::2], None, None, out[:, :4]), "table with"),
        (lambda ids, table, out: expand(table, out, out), r"int8 weights of float32 \[3, 8\]"),
        (lambda ids, table, out: expand(table[:2].char(), ids, out), "their scale of int64"),
    ],
)  # fmt: skip
def test_what_a_kernel_does_not_take_is_refused(
    device: torch.device, kernels: None, compute: Callable[..., Any], message: str
) -> None:
    ids, table, out = torch.tensor([0, 1]), torch.ones(3, 8), torch.ones(2, 8)
    with pytest.raises(ValueError, match=message):
        compute(ids, table, out)
