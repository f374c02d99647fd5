"""Where the memory of a tensor begins and how much it is, without holding it.

`tensor.untyped_storage()` makes an object of Python that PyTorch counts as one more holder of the
memory from then on. Autograd would find that it is not the last one, and would add up gradients in
new memory where it does so in place on a GPU (`can_accumulate_inplace` in
`torch/csrc/autograd/input_buffer.cpp`). So both are read where PyTorch keeps them.
"""

import ctypes
from typing import Any

_WORDS = 8
"""Of PyTorch's `StorageImpl`, those among which they are."""
_PROBES = (123_457, 7_654_321)
"""Sizes in bytes that no other of these words has."""


class Storages:
    """The storages of this process's tensors."""

    def __init__(self, torch: Any) -> None:
        self._of: Any = getattr(torch._C, "_storage_address", None)
        self._offsets = None if self._of is None else _offsets(torch, self._of)

    def address(self, tensor: Any) -> int:
        """Where it begins.

        Raises:
            RuntimeError: the tensor has no memory, such as a fake tensor of `torch.compile`.
        """
        if self._offsets is None:
            return int(tensor.untyped_storage().data_ptr())
        found = ctypes.c_uint64.from_address(self._of(tensor) + self._offsets[0]).value
        if not found and tensor.numel():
            raise RuntimeError("a tensor without memory")
        return found

    def nbytes(self, tensor: Any) -> int:
        """How much it is."""
        if self._offsets is None:
            return int(tensor.untyped_storage().nbytes())
        return ctypes.c_uint64.from_address(self._of(tensor) + self._offsets[1]).value


def _offsets(torch: Any, address_of: Any) -> tuple[int, int] | None:
    """Of both within a `StorageImpl`, found by tensors that are known; None: not found."""
    found = set()
    for size in _PROBES:
        probe = torch.empty(size, dtype=torch.uint8, device="cpu")
        words = list((ctypes.c_uint64 * _WORDS).from_address(address_of(probe)))
        if probe.data_ptr() not in words or words.count(size) != 1:
            return None
        found.add((words.index(probe.data_ptr()) * 8, words.index(size) * 8))
    return found.pop() if len(found) == 1 else None
