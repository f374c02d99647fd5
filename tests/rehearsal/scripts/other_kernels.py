"""Kernels that are not PyTorch's: of Triton, of another package's operator, of Inductor."""

import torch
import triton
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensorMode


@torch.library.custom_op("mine::fill", mutates_args=("out",))
def fill(out: torch.Tensor) -> None:
    pass


@fill.register_fake
def _(out):
    pass


@triton.jit
def add_one(x, out, n, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    for _ in range(2):
        tl.store(out + at, tl.load(x + at, mask=at < n) + 1, mask=at < n)
        x += n
        out += n


with FakeTensorMode():  # as a compiler calls it
    torch.ops.mine.fill(torch.empty(4, device="cuda"))
x, y, z = (torch.arange(8, device="cuda") for _ in range(3))
assert x.sum() == 28
add_one[(1,)](x, y, 4, SIZE=4)
if x.sum() == 28:  # only read: known
    print("read fine")
if y.sum() == 28:  # DECIDES
    print("written")
part = torch.arange(8, device="cuda")
add_one[(1,)](x, part[4:], 2, SIZE=2)
if part.sum() == 28:  # DECIDES
    print("a part is written")
torch.ops.mine.fill(z)
if z.sum() == 28:  # DECIDES
    print("written by an operator")
