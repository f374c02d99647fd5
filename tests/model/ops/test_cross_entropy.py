"""The chunked loss and its gradients, against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tritter_model.ops.cross_entropy import IGNORED, chunked_cross_entropy

SHAPES = [(1, 3, 2), (16, 20, 31), (17, 33, 131)]
in_every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
in_every_chunk = pytest.mark.parametrize("chunk", [1, 2, 5, 16, 17, 1000])


def some(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    tokens, hidden, vocabulary = shape
    torch.manual_seed(vocabulary)
    targets = torch.randint(vocabulary, (tokens,))
    if tokens > 1:
        targets[torch.rand(tokens) < 0.3] = IGNORED
        targets[-1] = 0
    states = torch.randn(tokens, hidden, requires_grad=True)
    return states, torch.randn(vocabulary, hidden, requires_grad=True), targets


@in_every_shape
@in_every_chunk
def test_loss_and_gradients_are_those_of_pytorch(shape: tuple[int, int, int], chunk: int) -> None:
    hidden, table, targets = some(shape)
    loss = chunked_cross_entropy(hidden, table, targets, chunk)
    got = torch.autograd.grad(loss * 3, (hidden, table))
    wide = [x.detach().double().requires_grad_() for x in (hidden, table)]
    wanted = F.cross_entropy(wide[0] @ wide[1].T, targets)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(got, torch.autograd.grad(wanted * 3, wide), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", [131, 1 << 40, -1, -101])
def test_a_target_that_the_vocabulary_does_not_have_is_refused(wrong: int) -> None:
    hidden, table, targets = some((17, 33, 131))
    targets[16] = wrong
    with pytest.raises(ValueError, match=rf"target of {wrong}, expected 0 to 130, or -100"):
        chunked_cross_entropy(hidden, table, targets, 5)


def test_a_master_table_acts_in_the_type_of_the_states_and_gets_its_own_gradient() -> None:
    hidden, table, targets = some((17, 33, 131))
    narrow = hidden.detach().bfloat16().requires_grad_()
    loss = chunked_cross_entropy(narrow, table, targets, 5)
    same = chunked_cross_entropy(narrow, table.detach().bfloat16(), targets, 5)
    assert torch.equal(loss, same)
    grads = torch.autograd.grad(loss, (narrow, table))
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32]
    wide = [x.detach().double().requires_grad_() for x in (narrow, table.detach().bfloat16())]
    wanted = torch.autograd.grad(F.cross_entropy(wide[0] @ wide[1].T, targets), wide)
    for ours, theirs in zip(grads, wanted, strict=True):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < 0.02  # logits in bfloat16: 2^-9 of a logit of about 6, and its exponential


def test_nothing_of_the_logits_size_is_kept(saved: type) -> None:
    hidden, table, targets = some((17, 33, 131))
    narrow = hidden.detach().bfloat16().requires_grad_()
    with saved(besides=[narrow, table, targets]) as kept:
        chunked_cross_entropy(narrow, table, targets, 5)
    assert kept.nbytes == 17 * 4 + 4  # a normaliser for each token, and how many count


def test_logits_of_one_chunk_exist_at_a_time(recording: type) -> None:
    hidden, table, targets = some((17, 33, 131))
    with recording() as events:
        chunked_cross_entropy(hidden, table, targets, 5).backward()
    shapes = [made.shape for made in events.made]
    assert shapes.count((5, 131)) == 2  # one forward, one backward
    assert (17, 131) not in shapes
