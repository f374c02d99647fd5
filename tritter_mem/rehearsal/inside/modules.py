"""Which module's call, weights, gradients or optimizer state a block of memory is.

The allocator's history has the lines that asked, not the modules. PyTorch's snapshots have a place
for words of one's own, `user_metadata` of an event, and here they are such as
`activations: Llama.model.layers.3.mlp`. While a module is called its words stand for all that the
thread asks for. What weights, gradients and optimizer states are is looked up when the allocated
peak has risen: at the end of a model's call, around an optimizer's step, and at the process's end.
"""

import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

ACTIVATIONS, WEIGHTS, GRADIENTS, OPTIMIZER = (
    "activations", "weights", "gradients", "optimizer_state",
)  # fmt: skip
MOST_LOOKS = 8
"""Look-ups that are remembered of each device, the latest."""


class Modules:
    """The names of this process's modules, and what its memory was for at the last peak."""

    def __init__(self, torch: Any, requests: Any) -> None:
        self._torch = torch
        self._requests = requests
        self._names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._roots: weakref.WeakSet[Any] = weakref.WeakSet()
        self._optimizers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._thread = threading.local()
        self._peaks: dict[int, int] = {}
        self._looks: dict[int, deque[tuple[int, dict[int, str]]]] = {}
        """By device and look-up: requests up to then, and what lay at which address."""

    def install(self) -> None:
        """See modules called and optimizers step; in compiled code nothing is seen."""
        torch = self._torch
        if not hasattr(torch._C, "_cuda_setMemoryMetadata"):
            return
        say: Callable[[str], None] = torch._C._cuda_setMemoryMetadata
        is_compiling, thread = torch.compiler.is_compiling, self._thread
        plain = torch.nn.Module.__call__

        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            if is_compiling():
                return plain(module, *args, **kwargs)
            outer = getattr(thread, "words", "")
            thread.words = words = f"{ACTIVATIONS}: {self._name(module, outer)}"
            say(words)
            try:
                return plain(module, *args, **kwargs)
            finally:
                thread.words = outer
                say(outer)
                if not outer:
                    self.look()

        torch.nn.Module.__call__ = call
        from torch.optim import optimizer

        def around(found: Any, *args: Any) -> None:
            if not is_compiling():
                self._optimizers.add(found)
                self.look()

        optimizer.register_optimizer_step_pre_hook(around)
        optimizer.register_optimizer_step_post_hook(around)

    def _name(self, module: Any, outer: str) -> str:
        known = self._names.get(module)
        if known is not None:
            return known
        kind = type(module).__name__
        if outer:  # made within another, and registered nowhere
            return f"{outer.partition(': ')[2]}.{kind}"
        for name, inner in module.named_modules():
            self._names[inner] = f"{kind}.{name}" if name else kind
        self._roots.add(module)
        return kind

    def look(self) -> None:
        """Look up what lies where, on devices whose allocated peak has risen."""
        torch = self._torch
        risen = {}
        for device in range(torch.cuda.device_count()):
            stats = torch._C._cuda_memoryStats(device)
            peak = stats["allocated_bytes"]["all"]["peak"] if stats else 0
            if peak > self._peaks.get(device, 0):
                risen[device] = self._peaks[device] = peak
        if not risen:
            return
        found: dict[int, dict[int, str]] = {device: {} for device in risen}
        with suppress(Exception), torch._C._DisableTorchDispatch():
            for tensor, words in self._known():
                local = getattr(tensor, "_local_tensor", tensor)
                if local.device.type == "cuda" and local.device.index in found:
                    address = local.untyped_storage().data_ptr()
                    found[local.device.index].setdefault(address, words)
        for device, labels in found.items():
            looks = self._looks.setdefault(device, deque(maxlen=MOST_LOOKS))
            if looks and looks[-1][1].items() <= labels.items():
                looks.pop()
            looks.append((self._requests.served(device), labels))

    def _known(self) -> Iterator[tuple[Any, str]]:
        owners: dict[int, str] = {}
        for root in list(self._roots):
            for name, module in root.named_modules():
                owner = self._names.get(module) or f"{type(root).__name__}.{name}"
                for one in [*module._parameters.values(), *module._buffers.values()]:
                    if one is not None:
                        owners.setdefault(id(one), owner)
                        yield one, f"{WEIGHTS}: {owner}"
                        if one.grad is not None:
                            yield one.grad, f"{GRADIENTS}: {owner}"
        for optimizer in list(self._optimizers):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    owner = owners.get(id(parameter), "")
                    yield parameter, f"{WEIGHTS}: {owner}"
                    if parameter.grad is not None:
                        yield parameter.grad, f"{GRADIENTS}: {owner}"
                    for value in optimizer.state.get(parameter, {}).values():
                        if isinstance(value, self._torch.Tensor):
                            yield value, f"{OPTIMIZER}: {owner}"

    def write_into(self, snapshot: dict[str, Any]) -> None:
        """Put the words of what was looked up into a snapshot's history.

        An address names the last request that it was given to before it was looked up. What is gone
        when it is looked up again, as a model at the process's end, keeps the words that it had.
        """
        for device, looks in self._looks.items():
            first, asked = self._requests.numbered(snapshot, device)
            for requests, labels in looks:
                left = dict(labels)
                for event in reversed(asked[: max(requests - first, 0)]):
                    words = left.pop(event["addr"], None)
                    if words is not None:
                        event["user_metadata"] = sys.intern(words)
                    if not left:
                        break
