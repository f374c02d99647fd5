"""The embedding: rows of a table, a prefix, and the table's gradient."""

from typing import Any

import pytest
import torch

from tritter_model.ops.dense import quantise_int8
from tritter_model.ops.embedding import embed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embedding_takes_rows_of_a_float_or_int8_table(dtype: torch.dtype) -> None:
    ids, table = torch.randint(0, 31, (17,)), torch.randn(31, 9)
    out = embed(ids, table, None, None, torch.empty(17, 9, dtype=dtype))
    assert torch.equal(out, table[ids].to(dtype))
    codes, scale = quantise_int8(table)
    out = embed(ids, codes, scale, None, torch.empty(17, 9, dtype=dtype))
    assert torch.equal(out, (codes[ids] * scale[ids, None]).to(dtype))


@pytest.mark.parametrize("prefixed", [1, 2, 5])
def test_a_prefix_takes_the_first_rows_of_each_sequence(prefixed: int) -> None:
    ids, table = torch.randint(0, 31, (3, 5)), torch.randn(31, 9)
    ids[:, :prefixed] = -1
    prefix = torch.randn(3, prefixed, 9)
    out = embed(ids.flatten(), table, None, prefix, torch.empty(15, 9)).view(3, 5, 9)
    assert torch.equal(out[:, :prefixed], prefix)
    assert torch.equal(out[:, prefixed:], table[ids[:, prefixed:]])


@pytest.mark.parametrize("prefixed", [0, 1, 5])
@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16], ids=str)
def test_a_table_s_gradient_sums_its_tokens_and_leaves_the_prefix_out(
    prefixed: int, master: torch.dtype
) -> None:
    ids = torch.randint(0, 4, (3, 5))  # few ids, so that they repeat
    ids[:, :prefixed] = -100
    table = torch.randn(31, 9, dtype=master, requires_grad=True)
    prefix = torch.randn(3, prefixed, 9) if prefixed else None
    grad = torch.randn(15, 9)
    out = embed(ids.flatten(), table, None, prefix, torch.empty(15, 9))
    out.backward(grad)
    wanted = torch.zeros(31, 9, dtype=torch.float64)
    for token, row in zip(ids.flatten().tolist(), grad.double(), strict=True):
        if token >= 0:
            wanted[token] += row
    assert table.grad is not None
    assert table.grad.dtype == master
    error = 16 * torch.finfo(master).eps
    torch.testing.assert_close(table.grad.double(), wanted, rtol=error, atol=error * 4)


def test_embedding_keeps_the_ids_and_the_table_alone(saved: Any) -> None:
    ids, table = torch.randint(0, 31, (17,)), torch.randn(31, 9, requires_grad=True)
    with saved(besides=[ids, table]) as kept:
        embed(ids, table, None, None, torch.empty(17, 9))
    assert kept.nbytes == 0
