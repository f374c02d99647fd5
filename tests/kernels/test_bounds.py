"""Kernels that are interpreted touch no memory beside their arguments: what sees it if one does."""

import pytest
import torch

from tritter_model.ops.jit import interpreted

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
pytestmark = pytest.mark.skipif(not interpreted(), reason="a GPU has no such check")


@triton.jit
def _copy_kernel(source, to, size, first, BLOCK: tl.constexpr):
    at = first + tl.arange(0, BLOCK)
    tl.store(to + at, tl.load(source + at, mask=at < size, other=0), mask=at < size)


def copy(source: torch.Tensor, to: torch.Tensor, size: int, first: int = 0) -> None:
    _copy_kernel[(1,)](source, to, size, first, BLOCK=8)


def test_all_of_the_arguments_may_be_touched() -> None:
    whole = torch.arange(8.0)
    copy(whole[1:6], to := torch.zeros(5), 5)
    assert torch.equal(to, whole[1:6])


@pytest.mark.parametrize(("read", "written"), [(5, 6), (6, 5)], ids=["read", "written"])
@pytest.mark.parametrize(("size", "first"), [(6, 0), (5, -1)], ids=["behind", "before"])
def test_a_number_beside_an_argument_is_seen(
    read: int, written: int, size: int, first: int
) -> None:
    """Though it is the same tensor's memory, of which the kernel was given a part."""
    source, to = torch.zeros(8)[1:], torch.zeros(8)[1:]
    with pytest.raises(Exception, match="of memory are of no argument"):
        copy(source[1 : 1 + read], to[1 : 1 + written], size, first)
