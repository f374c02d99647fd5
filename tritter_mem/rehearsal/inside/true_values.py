"""Small values are true: what few elements need is computed on the host, in the device's memory.

The memory of a stand-in is the host's, and its kernels do nothing. Below autograd, and below every
mode of dispatch, each operator's kernel for CUDA is replaced by one that first calls the original,
so that memory is taken as ever, and then computes on views of that memory, where it is little. Of
each storage it is known whether its values are

- known: they were copied from the host or computed of known values,
- assumed: they follow a stated rule (the routing of experts is balanced, values are finite),
- unknown: nothing computed them.

Where an unknown value decides a shape or a branch, the line that asked for it is noted.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

FEW = 16_384
"""Elements of real numbers up to which an operator is computed."""
FEW_WHOLE = 1 << 24
"""Elements of integers and booleans: routing tables and masks decide shapes."""
KNOWN, ASSUMED, UNKNOWN = 0, 1, 2
MOST_PARTS = 256
"""Of one storage, how many parts are remembered that were written one by one."""
_HERE = os.path.dirname(os.path.abspath(__file__))
_LEFT_OUT = (
    "view", "as_strided", "_reshape_alias", "unfold", "view_as_complex", "view_as_real",
    "_nested_view_from_buffer", "resize_", "set_", "record_stream",
)  # fmt: skip
_CHOOSE = {"aten::argmax", "aten::argmin", "aten::multinomial"}
_COMPOSITE = ("aten::copy_", "aten::isfinite", "aten::isinf")
"""Operators without a kernel for CUDA that are watched all the same."""
_SHAPED_BY_VALUES = {
    "aten::_unique2", "aten::_unique", "aten::unique_dim", "aten::unique_consecutive",
    "aten::unique_dim_consecutive",
}  # fmt: skip
_OWN = ("aten::", "c10d::", "prim", "_c10d_functional::", "higher_order")
"""How the names of operators begin that are PyTorch's own."""
_NUMBER_FIRST = ("aten::pow.Scalar", "aten::isin.Scalar_Tensor")
"""Operators of a number and a tensor that are made of those of two tensors."""
_FINITE = {"aten::isnan": False, "aten::isinf": False, "aten::isfinite": True}
_UNSCALE = "aten::_amp_foreach_non_finite_check_and_unscale_"

Where = Callable[[], str]


class Values:
    """The replaced kernels of this process."""

    def __init__(self, torch: Any, host_values: Any, storages: Any, sync: Callable[[int], None],
                 note: Callable[..., None]) -> None:  # fmt: skip
        self.torch = torch
        self._storages = storages
        self._on_the_host = host_values.HostValues(
            torch, self.decided, self._read_by_host, _Operator, _LEFT_OUT
        )
        self._quietly = host_values.quietly
        self.problem = ""
        self.capturing = 0
        self._sync = sync
        self._note = note
        self._noted: set[tuple[str, str]] = set()
        self._states: dict[int, int] = {}
        self._constants: dict[int, bool] = {}
        self._parts: dict[int, list[tuple[int, int, int]]] = {}
        self._thread = threading.local()
        self._random: Any = None
        self._whole = {
            torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        }  # fmt: skip
        self._library: Any = None
        self._answer: Any = None
        self._contributes: Any = None
        self._received: Any = None
        self._drops = tuple(filter(None, os.environ.get("STANDIN_DROPS", "").split(os.pathsep)))

    # Putting it in place

    def install(self) -> None:
        """Replace the kernels; what this torch does not allow is said in `problem`."""
        torch = self.torch
        if not hasattr(torch.library, "get_kernel"):
            self.problem = "PyTorch before 2.10: small tensors are not computed either"
            return
        everywhere = ctypes.CDLL(None)
        self._answer = everywhere.tritter_standin_answer
        self._contributes = everywhere.tritter_standin_contributes
        self._received = everywhere.tritter_standin_received
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        names = [
            name
            for name in torch._C._dispatch_get_all_op_names()
            if (name.startswith(("aten::", "c10d::")) and has(name, "CUDA")) or name in _COMPOSITE
        ]
        import warnings

        self._library = {
            of: torch.library.Library(of, "IMPL") for of in ("aten", "c10d")
        }  # kept: kernels go with it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names:
                self._replace(name)
        self._on_the_host.install()
        self._patch_tensors()
        self._patch_graphs()
        self._patch_compiled()
        self._patch_other_operators()

    def _replace(self, name: str) -> None:
        torch = self.torch
        base = name.partition(".")[0]
        if base.removeprefix("aten::") in _LEFT_OUT:
            return
        namespace, _, short = name.partition("::")
        kernel = torch.library.get_kernel(name, "CUDA")
        operator = _Operator(torch, name, kernel)
        run = self._handler_of(base, operator)
        library = self._library[namespace]
        library.impl(short, run, "CUDA", with_keyset=True, allow_override=True)

    def _handler_of(self, base: str, operator: "_Operator") -> Callable[..., Any]:
        if operator.name.startswith(_NUMBER_FIRST):
            return lambda keyset, *args, **kwargs: self._number_first(operator, args, kwargs)
        special = {
            "aten::_local_scalar_dense": self._scalar,
            "aten::nonzero": self._nonzero,
            "aten::copy_": self._copy,
            "aten::equal": self._equal,
        }.get(base)
        if base.startswith("c10d::"):
            return lambda keyset, *args, **kwargs: self._collective(operator, keyset, args, kwargs)
        if special is not None and "out" not in operator.name.partition(".")[2]:
            return lambda keyset, *args, **kwargs: special(operator, keyset, args, kwargs)
        if base in _SHAPED_BY_VALUES:
            return lambda keyset, *args, **kwargs: self._shaped(operator, keyset, args, kwargs)
        return lambda keyset, *args, **kwargs: self._general(
            operator, keyset, operator.with_tensors(args), kwargs
        )

    # What is known

    def _key(self, tensor: Any) -> int:
        found: int = self._storages.address(tensor)
        return found

    def state(self, tensor: Any) -> int:
        """Whether the values of a tensor's storage are known, assumed or unknown."""
        if tensor.numel() == 0:
            return KNOWN
        if tensor.device.type != "cuda":
            found: int = self._on_the_host.state(tensor)
            return found
        key = self._key(tensor)
        state = self._states.get(key, UNKNOWN)
        parts = self._parts.get(key)
        if state != UNKNOWN or not parts:
            return state
        first, last = _span(tensor)
        within = [part for part in parts if part[0] < last and part[1] > first]
        at = first
        for start, end, _ in sorted(within):
            if start > at:
                return UNKNOWN
            at = max(at, end)
        return max(part[2] for part in within) if at >= last else UNKNOWN

    def is_known(self, tensor: Any) -> bool:
        """Whether a tensor's values are known, or follow a rule."""
        return self.state_of_any(tensor) != UNKNOWN

    def forget(self, tensor: Any) -> None:
        """Something wrote into a tensor, and computed nothing."""
        with suppress(RuntimeError):  # a compiler's fake tensor has no memory
            self._mark_written(tensor, UNKNOWN)

    def _mark(self, tensor: Any, state: int) -> None:
        if tensor.device.type == "cuda":
            key = self._key(tensor)
            self._states[key] = UNKNOWN if self.capturing else state
            self._constants.pop(key, None)
            self._parts.pop(key, None)

    def _mark_written(self, tensor: Any, state: int) -> None:
        """A tensor that was written into: what is around it stays as it was."""
        if tensor.device.type != "cuda":
            return
        whole = tensor.numel() * tensor.element_size() >= self._storages.nbytes(tensor)
        key = self._key(tensor)
        around = self._states.get(key, UNKNOWN)
        if whole or around != UNKNOWN:
            self._mark(tensor, state if whole else max(state, around))
        elif tensor.is_contiguous() and not self.capturing:
            self._mark_part(key, _span(tensor), state)

    def _mark_part(self, key: int, span: tuple[int, int], state: int) -> None:
        """A part of a storage whose rest is not known."""
        first, last = span
        kept = []
        for start, end, other in self._parts.get(key, ()):
            if start < first:
                kept.append((start, min(end, first), other))
            if end > last:
                kept.append((max(start, last), end, other))
        if state != UNKNOWN:
            kept.append((first, last, state))
        self._parts[key] = kept[-MOST_PARTS:]

    def few(self, tensors: Iterable[Any]) -> bool:
        """Whether so much is computed."""
        most_real = most_whole = 0
        for tensor in tensors:
            if tensor.dtype in self._whole:
                most_whole += tensor.numel()
            else:
                most_real += tensor.numel()
        return most_real <= FEW and most_whole <= FEW_WHOLE

    # Views of the device's memory

    def host(self, value: Any) -> Any:
        """A tensor of the device as one of the host, in the same memory; all else as it is."""
        torch = self.torch
        if isinstance(value, torch.Tensor):
            if value.device.type != "cuda":
                return value
            same = torch._C._construct_storage_from_data_pointer(
                self._storages.address(value), torch.device("cpu"), self._storages.nbytes(value)
            )
            view = torch.empty(0, dtype=value.dtype, device="cpu")
            view.set_(same, value.storage_offset(), value.size(), value.stride())
            return view.conj() if value.is_conj() else view
        if isinstance(value, list | tuple):
            return type(value)([self.host(one) for one in value])
        if isinstance(value, torch.Generator):
            return None
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value

    def zero(self, tensor: Any) -> None:
        """Zeros, where it is little: nothing that was there before is read."""
        if tensor.device.type == "cuda" and 0 < tensor.numel() <= FEW:
            self.host(tensor).zero_()

    # Kernels

    def _general(self, operator: "_Operator", keyset: Any, args: Any, kwargs: Any) -> Any:
        within = getattr(self._thread, "within", False)
        inputs, written = ([], []) if within else operator.tensors(args, kwargs)
        # A kernel that is made of others changes what it writes through them: once is enough.
        before = [(one, self.host(one).clone()) for one in written if self._is_kept(one, written)]
        result = operator.kernel.call_boxed(keyset, *args, **kwargs)
        if within:
            return result
        for one, kept in before:
            self.host(one).copy_(kept)
        fresh = operator.fresh(result, written)
        self._sync_of(inputs, written, fresh)
        base = operator.base
        if operator.makes_nothing:
            for tensor in fresh:
                self._mark(tensor, UNKNOWN)
                self.zero(tensor)
            return result
        if base == _UNSCALE:
            return self._unscaled(operator, args, kwargs, result)
        everything = [*inputs, *written, *fresh]
        state = max([self.state(one) for one in operator.read(inputs, written)], default=KNOWN)
        few = self.few(everything)
        if state == UNKNOWN and self._by_rule(operator, args, fresh):
            return result
        if not (few and self._compute(operator, args, kwargs, fresh, state)):
            state = UNKNOWN
            for tensor in fresh:
                self.zero(tensor)
        for tensor in fresh:
            self._mark(tensor, state)
        for tensor in written:
            self._mark_written(tensor, state)
        return result

    def _number_first(self, operator: "_Operator", args: Any, kwargs: Any) -> Any:
        """PyTorch makes a tensor of the number there, which no kernel in Python can take."""
        torch, (number, tensor, *more) = self.torch, args
        kind = torch.result_type(number, tensor)
        first = torch.full((), number, dtype=kind, device=tensor.device)
        packet = getattr(torch.ops.aten, operator.base.removeprefix("aten::"))
        return packet(first, tensor, *more, **kwargs)

    def _is_kept(self, tensor: Any, written: list[Any]) -> bool:
        if tensor.device.type != "cuda" or len(written) > 8:
            return False
        return bool(0 < tensor.numel() <= FEW)

    def _sync_of(self, *groups: list[Any]) -> None:
        for group in groups:
            for tensor in group:
                if tensor.device.type == "cuda":
                    self._sync(tensor.device.index)
                    return

    def _compute(self, operator: "_Operator", args: Any, kwargs: Any, fresh: list[Any],
                 state: int) -> bool:  # fmt: skip
        """Compute on the host, in the device's memory; False where that is not possible.

        With unknown values too: what is known among them still counts (an end that is reached, or
        with something else). They are zeros, or follow a rule, and what comes of them is finite.
        """
        if not operator.computable:
            return False
        with self.torch._C._DisableTorchDispatch():
            try:
                found = self._on_host(operator, args, kwargs, state)
                made = operator.fresh_of_host(found)
                if len(made) != len(fresh):
                    return False
                for to, value in zip(fresh, made, strict=True):
                    if to.shape != value.shape:
                        return False
                    if to.numel():
                        self._put(to, value, state)
            except Exception:  # no kernel for the CPU, or none for the type
                operator.failed()
                return False
        return True

    def _put(self, to: Any, value: Any, state: int) -> None:
        if state == UNKNOWN and (value.is_floating_point() or value.is_complex()):
            value = value.nan_to_num(0.0, 0.0, 0.0)
        self.host(to).copy_(value)

    def _on_host(self, operator: "_Operator", args: Any, kwargs: Any, state: int) -> Any:
        view = self.host if state != UNKNOWN else self._host_or_zeros
        host_args = [
            (self.host if operator.writes(at) else view)(one) for at, one in enumerate(args)
        ]
        host_kwargs = {name: view(one) for name, one in kwargs.items()}
        if not operator.is_random:
            return self._called(operator, host_args, host_kwargs)
        torch = self.torch
        theirs = torch.default_generator.get_state()
        if self._random is None:
            torch.default_generator.manual_seed(0)
        else:
            torch.default_generator.set_state(self._random)
        try:
            return operator.function(*host_args, **host_kwargs)
        finally:
            self._random = torch.default_generator.get_state()
            torch.default_generator.set_state(theirs)

    def _called(self, operator: "_Operator", args: list[Any], kwargs: dict[str, Any]) -> Any:
        """On the host some kernels are missing for some types: a wider type has the same values."""
        try:
            return operator.function(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            if operator.writes_any:
                raise
            wide = [self._wider(one) for one in args]
            return operator.function(*wide, **kwargs)

    def _wider(self, value: Any) -> Any:
        torch = self.torch
        if not isinstance(value, torch.Tensor) or value.dtype == torch.bool:
            return value
        return value.double() if value.dtype != torch.float32 else value

    def _host_or_zeros(self, value: Any) -> Any:
        """As `host`; of a part of what is large and unknown, zeros: anything may lie there."""
        torch = self.torch
        if isinstance(value, list | tuple):
            return type(value)([self._host_or_zeros(one) for one in value])
        if not isinstance(value, torch.Tensor) or value.device.type != "cuda":
            return self.host(value)
        if self._of_large(value) and self.state(value) == UNKNOWN:
            return torch.zeros(value.shape, dtype=value.dtype, device="cpu")
        return self.host(value)

    # Rules for what is unknown

    def _by_rule(self, operator: "_Operator", args: Any, fresh: list[Any]) -> bool:
        """Values that follow a stated rule; False where there is none for the operator."""
        base = operator.base
        if base in _FINITE and fresh:
            self._fill(fresh[0], _FINITE[base])
            return True
        if base in ("aten::all", "aten::any") and len(fresh) == 1:
            return self._of_constant(args[0], fresh[0])
        few = bool(fresh) and fresh[-1].numel() <= FEW_WHOLE  # numbers of places are whole
        if base == "aten::topk" and len(fresh) == 2 and few:
            self.zero(fresh[0])
            self._mark(fresh[0], UNKNOWN)
            self._balance(args[0], fresh[1], args[2] if len(args) > 2 else -1)
            self._mark(fresh[1], ASSUMED)
            return True
        if base in _CHOOSE and len(fresh) == 1 and few:
            self._choose(operator, args, fresh[0])
            self._mark(fresh[0], UNKNOWN)
            return True
        if base in ("aten::sort", "aten::argsort") and few:
            self._mark(fresh[0], UNKNOWN)
            dim = next((one for one in args[1:] if isinstance(one, int) and one is not True
                        and one is not False), -1)  # fmt: skip
            self._in_order(fresh[-1], dim)
            self._mark(fresh[-1], UNKNOWN)
            return True
        return False

    def _fill(self, tensor: Any, value: bool) -> None:
        if tensor.numel() <= FEW_WHOLE:
            self.host(tensor).fill_(value)
        self._mark(tensor, ASSUMED)
        if not self.capturing:
            self._constants[self._key(tensor)] = value

    def _of_constant(self, source: Any, to: Any) -> bool:
        constant = self._constants.get(self._key(source)) if source.numel() else None
        if constant is None:
            return False
        self._fill(to, constant)
        return True

    def _count(self, most: int) -> Any:
        """Numbers from 0, on the host, whatever device new tensors are made on."""
        return self.torch.arange(most, device="cpu")

    def _balance(self, scores: Any, chosen: Any, dim: int) -> None:
        """Row i takes the choices from i * k on, around: every expert gets as many tokens."""
        choices = scores.size(dim) if scores.dim() else 1
        rows = self.host(chosen).movedim(dim, -1) if chosen.dim() else self.host(chosen)
        count = rows.shape[-1] if rows.dim() else 1
        order = self._count(rows.numel() // max(count, 1) * count) % max(choices, 1)
        rows.copy_(order.view(rows.shape))

    def _choose(self, operator: "_Operator", args: Any, chosen: Any) -> None:
        """One in the middle: no usual number of an end token."""
        source = args[0]
        dim = -1
        if operator.base != "aten::multinomial" and len(args) > 1 and args[1] is not None:
            dim = args[1]
        size = source.size(dim) if source.dim() else 1
        host = self.host(chosen)
        host.copy_((self._count(host.numel()) + size // 2).view(host.shape) % max(size, 1))

    def _in_order(self, indices: Any, dim: int) -> None:
        if not indices.dim():
            return
        host = self.host(indices).movedim(dim, -1)
        host.copy_(self._count(host.shape[-1]).expand(host.shape))

    def _unscaled(self, operator: "_Operator", args: Any, kwargs: Any, result: Any) -> Any:
        """Gradients that nothing computed are finite."""
        gradients, found = args[0], args[1]
        everything = [*gradients, found, args[2]]
        known = max(self.state(one) for one in everything) != UNKNOWN
        if known and self.few(everything) and self._compute(operator, args, kwargs, [], KNOWN):
            return result
        self._mark(found, max(ASSUMED, min(self.state(found), ASSUMED)))
        return result

    # Values that the host asks for

    def _scalar(self, operator: "_Operator", keyset: Any, args: Any, kwargs: Any) -> Any:
        [tensor] = args
        state = self.state(tensor)
        found = operator.kernel.call_boxed(keyset, tensor)
        if state == KNOWN:
            return found
        self._read_by_host(tensor, state)
        if state == ASSUMED:
            return found
        return type(found)(0) if self._of_large(tensor) else found

    def _read_by_host(self, tensor: Any, state: int) -> None:
        """A number of a tensor becomes one of Python: note what that decides."""
        if state == KNOWN:
            return
        if state == ASSUMED:
            self.decided("assumed")
        elif tensor.dtype in self._whole or getattr(self._thread, "deciding", False):
            self.decided("decided")
        elif not getattr(self._thread, "followed", False):
            self.decided("not_followed")

    def _of_large(self, tensor: Any) -> bool:
        """Whether it is a part of something in which anything may lie."""
        return bool(self._storages.nbytes(tensor) > FEW * tensor.element_size())

    def decided(self, kind: str) -> None:
        """A value that nothing computed decided something: note the line, once."""
        if getattr(self._thread, "quiet", False):
            return
        line = self.where()
        if (kind, line) not in self._noted:
            self._noted.add((kind, line))
            self._note(kind, line)

    def _nonzero(self, operator: "_Operator", keyset: Any, args: Any, kwargs: Any) -> Any:
        [tensor] = args
        state = self.state(tensor)
        if state != UNKNOWN and self.few([tensor]):
            found = self.host(tensor).nonzero()
            if state == ASSUMED:
                self.decided("assumed")
        else:
            state = UNKNOWN
            self.decided("decided")
            found = None
        count = tensor.numel() if found is None else found.shape[0]
        self._answer(ctypes.c_longlong(count), ctypes.c_int(1))
        result = operator.kernel.call_boxed(keyset, tensor)
        self._answer(ctypes.c_longlong(0), ctypes.c_int(0))
        self._sync_of([tensor])
        if found is not None and found.shape == result.shape:
            self.host(result).copy_(found)
        elif result.numel() <= FEW_WHOLE and result.numel():
            kept = self.torch.ones(tensor.shape, dtype=self.torch.bool, device="cpu")
            everything = kept.nonzero()
            if everything.shape == result.shape:
                self.host(result).copy_(everything)
        self._mark(result, state)
        return result

    def _shaped(self, operator: "_Operator", keyset: Any, args: Any, kwargs: Any) -> Any:
        """Results whose shape follows from values, made with the shape that is right.

        Of unknown values all are taken to differ, which takes most.
        """
        torch, tensor = self.torch, args[0]
        state = self.state(tensor)
        self._thread.quiet = True  # what it asks of memory that it did not compute decides nothing
        try:
            operator.kernel.call_boxed(keyset, *args, **kwargs)  # for what it takes meanwhile
        finally:
            self._thread.quiet = False
        self._sync_of([tensor])
        if state == UNKNOWN or not self.few([tensor]):
            state = UNKNOWN
            self.decided("decided")
            source = self._count(tensor.numel()).view(tensor.shape).to(tensor.dtype)
        else:
            source = self.host(tensor)
            if state == ASSUMED:
                self.decided("assumed")
        found = operator.function(source, *args[1:], **kwargs)
        parts = []
        for part in found if isinstance(found, tuple) else (found,):
            made = torch.empty(part.shape, dtype=part.dtype, device=tensor.device)
            if part.numel():
                self.host(made).copy_(part)
            self._mark(made, state)
            parts.append(made)
        self._sync_of(parts)
        return tuple(parts) if isinstance(found, tuple) else parts[0]

    def _collective(self, operator: "_Operator", keyset: Any, args: Any, kwargs: Any) -> Any:
        """Ranks exchange little truly, and with it how well it is known."""
        given = args[1] if len(args) > 1 and self._has_tensors(args[1]) else args[0]
        inputs, outputs = self._tensors_of(given), self._tensors_of(args[0])
        self._contributes(max([self.state(one) for one in inputs], default=KNOWN))
        self._thread.within = True
        try:
            result = operator.kernel.call_boxed(keyset, *args, **kwargs)
        finally:
            self._thread.within = False
        self._sync_of(outputs)
        if operator.base not in ("c10d::send", "c10d::barrier", "c10d::monitored_barrier_"):
            alone = bool(os.environ.get("STANDIN_WORLD_SIZE"))  # the others are not there
            state = UNKNOWN if alone else min(UNKNOWN, self._received())
            for tensor in outputs:
                self._mark_written(tensor, state)
        return result

    def _tensors_of(self, value: Any) -> list[Any]:
        if isinstance(value, self.torch.Tensor):
            return [value]
        if isinstance(value, list | tuple):
            return [one for part in value for one in self._tensors_of(part)]
        return []

    def _has_tensors(self, value: Any) -> bool:
        return bool(self._tensors_of(value))

    def _equal(self, operator: "_Operator", keyset: Any, args: Any, kwargs: Any) -> Any:
        first, second = args
        found = operator.kernel.call_boxed(keyset, first, second)
        state = max(self.state(first), self.state(second))
        if first.shape != second.shape:
            return found
        if state != UNKNOWN and self.few([first, second]):
            if state == ASSUMED:
                self.decided("assumed")
            return self.torch.equal(self.host(first), self.host(second))
        self.decided("decided")
        return True

    def _copy(self, operator: "_Operator", keyset: Any, args: Any, kwargs: Any) -> Any:
        to, source = args[0], args[1]
        result = operator.kernel.call_boxed(keyset, *args, **kwargs)
        if getattr(self._thread, "within", False):  # between buffers of a collective
            if to.numel() and self.few([to]):
                self.host(to).copy_(self.host(source))
            return result
        state = self.state(source)
        self._sync_of([to, source])
        if to.device.type == "cpu":
            if source.device.type == "cuda" and state != KNOWN and to.numel():
                self._given_to_host(to, source, state)
            return result
        size = source.numel() * source.element_size()
        if source.device.type == "cpu" and to.numel() * to.element_size() > 16 << 20:
            state = UNKNOWN
        elif source.device.type == "cuda" and state != UNKNOWN:
            if self.few([to, source]):
                self.host(to).copy_(self.host(source))
            elif size > 1 << 20 or to.dtype != source.dtype or not to.is_contiguous():
                state = UNKNOWN
        elif source.device.type == "cuda":
            self.zero(to)
        elif not (to.is_contiguous() and source.is_contiguous() and to.dtype == source.dtype):
            # The driver's copies are true; what converts or strides is a kernel.
            if self.few([to]):
                self.host(to).copy_(source)
            else:
                state = UNKNOWN
        self._mark_written(to, state)
        return result

    def _given_to_host(self, to: Any, source: Any, state: int) -> None:
        """Values on the host that are not known: integers decide, real numbers are shown."""
        if state == UNKNOWN and self._of_large(source):
            to.zero_()
        self._on_the_host.mark(to, state)
        if to.dtype in self._whole and to.numel() <= FEW:
            by_rule = state == ASSUMED or self._is_thrown_away()
            self.decided("assumed" if by_rule else "decided")

    def _is_thrown_away(self) -> bool:
        """Whether a serving engine warms up, and drops what it samples meanwhile."""
        frame: Any = sys._getframe(1) if self._drops else None
        while frame is not None:
            if frame.f_code.co_filename.endswith(self._drops):
                return True
            frame = frame.f_back
        return False

    # What of Python's side is watched

    def _patch_tensors(self) -> None:
        values, Tensor, thread = self, self.torch.Tensor, self._thread
        item, truth, shown = Tensor.item, Tensor.__bool__, Tensor.__repr__

        def item_of(tensor: Any) -> Any:
            thread.followed = True
            try:
                found = item(tensor)
            finally:
                thread.followed = False
            if type(found) is float and values.state_of_any(tensor) == UNKNOWN:
                return values._on_the_host.number(found)
            return found

        def truth_of(tensor: Any) -> Any:
            thread.deciding = True
            try:
                return truth(tensor)
            finally:
                thread.deciding = False

        def shown_of(tensor: Any, **kwargs: Any) -> str:
            with values._quietly(thread):
                return str(shown(tensor, **kwargs))

        Tensor.item, Tensor.__bool__, Tensor.__repr__ = item_of, truth_of, shown_of

    def state_of_any(self, tensor: Any) -> int:
        """`state`, of tensors that are no plain ones too."""
        try:
            return self.state(tensor)
        except Exception:
            return KNOWN

    def _patch_graphs(self) -> None:
        """What is captured runs again with other values."""
        values, graph = self, self.torch.cuda.CUDAGraph
        begin, end = graph.capture_begin, graph.capture_end

        def capture_begin(one: Any, *args: Any, **kwargs: Any) -> Any:
            values.capturing += 1
            return begin(one, *args, **kwargs)

        def capture_end(one: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return end(one, *args, **kwargs)
            finally:
                values.capturing -= 1

        graph.capture_begin, graph.capture_end = capture_begin, capture_end

    def _patch_compiled(self) -> None:
        """Compiled code takes memory past the dispatcher."""
        guards = getattr(self.torch._C, "_dynamo", None)
        guards = getattr(guards, "guards", None)
        make = getattr(guards, "_empty_strided_cuda", None)
        if make is None:
            return

        def empty_strided(*args: Any, **kwargs: Any) -> Any:
            made = make(*args, **kwargs)
            self._mark(made, UNKNOWN)
            self._sync_of([made])
            return made

        guards._empty_strided_cuda = empty_strided  # type: ignore[union-attr]

    def _patch_other_operators(self) -> None:
        """Operators of other packages compute nothing: what they write is not known."""
        values, torch = self, self.torch
        written: dict[str, tuple[set[int], set[str]]] = {}

        def writes(name: str, overloads: Iterable[Any]) -> tuple[set[int], set[str]]:
            if name not in written:
                found = [
                    (at, one.name)
                    for overload in overloads
                    for at, one in enumerate(overload._schema.arguments)
                    if _is_written(one)
                ]
                written[name] = {at for at, _ in found}, {word for _, word in found}
            return written[name]

        def after(places: tuple[set[int], set[str]], args: Any, kwargs: Any) -> None:
            for at, value in [*enumerate(args), *kwargs.items()]:
                if at in places[at.__class__ is str]:
                    for tensor in values._tensors_of(value):
                        values.forget(tensor)

        def watched(kind: Any, named: str, overloads: Callable[[Any], Iterable[Any]]) -> None:
            plain = kind.__call__

            def call(operator: Any, /, *args: Any, **kwargs: Any) -> Any:
                result = plain(operator, *args, **kwargs)
                name = getattr(operator, named)
                if not name.startswith(_OWN) and not torch.compiler.is_compiling():
                    after(writes(name, overloads(operator)), args, kwargs)
                return result

            kind.__call__ = call

        watched(torch._ops.OpOverload, "_name", lambda one: (one,))
        watched(
            torch._ops.OpOverloadPacket,
            "_qualified_op_name",
            lambda packet: [getattr(packet, name) for name in packet.overloads()],
        )

    # Lines

    def where(self) -> str:
        """The line that asked: the innermost outside of torch, and the user's own behind it."""
        frame = sys._getframe(1)
        inner = own = ""
        at: Any = frame
        while at is not None:
            path = at.f_code.co_filename
            if not path.startswith((_HERE, "<")) and "/torch/" not in path:
                line = f"{path}:{at.f_lineno} in {at.f_code.co_name}"
                inner = inner or line
                if "site-packages" not in path and "/lib/python" not in path:
                    own = line
                    break
            at = at.f_back
        if not inner:
            return "code without a line in Python"
        return inner if not own or own == inner else f"{inner}, called from {own}"


class _Operator:
    """One operator: its kernel, and what its schema says."""

    def __init__(self, torch: Any, name: str, kernel: Any) -> None:
        self.name, self.kernel, self._torch = name, kernel, torch
        self.base = name.partition(".")[0]
        self.computable = not name.startswith("c10d::")
        short = self.base.removeprefix("aten::")
        self.makes_nothing = (
            short.startswith(("empty", "new_empty")) or short == "_efficientzerotensor"
        )
        self._function: Any = None
        self._failures = 0

    @property
    def function(self) -> Any:
        """What is called on the host."""
        if self._function is None:
            namespace, _, rest = self.name.partition("::")
            base, _, overload = rest.partition(".")
            packet = getattr(getattr(self._torch.ops, namespace), base)
            self._function = getattr(packet, overload or "default")
            arguments = self._function._schema.arguments
            self._writes = [_is_written(one) for one in arguments]
            self._names = [one.name for one in arguments]
            self._tensors = [
                at
                for at, one in enumerate(arguments)
                if str(one.type) in ("Tensor", "Optional[Tensor]")
            ]
            tags = self._function.tags
            self._is_random = self._torch.Tag.nondeterministic_seeded in tags
            self._out = [one.is_out for one in arguments]
        return self._function

    def with_tensors(self, args: Any) -> Any:
        """Arguments as the kernel takes them: a number that stands for a tensor arrives as one.

        It becomes one of the type that the result has, so that nothing else is promoted.
        """
        if self._function is None:
            self.function  # noqa: B018  (reads the schema)
        numbers = [
            at for at in self._tensors
            if at < len(args) and isinstance(args[at], int | float | complex)
        ]  # fmt: skip
        if not numbers:
            return args
        torch, changed = self._torch, list(args)
        others = [one for one in args if isinstance(one, torch.Tensor)]
        for at in numbers:
            kind = torch.result_type(others[0], args[at]) if others else None
            changed[at] = torch.tensor(args[at], dtype=kind, device="cpu")
        return tuple(changed)

    @property
    def writes_any(self) -> bool:
        """Whether any argument is written."""
        return any(self._writes)

    def writes(self, at: int) -> bool:
        """Whether the argument of that number is written."""
        return bool(self._writes[at])

    @property
    def is_random(self) -> bool:
        """Whether it takes random numbers."""
        return bool(self.function) and self._is_random

    def failed(self) -> None:
        """The host cannot compute it; soon it is not tried again."""
        self._failures += 1
        if self._failures > 20:
            self.computable = False

    def tensors(self, args: Any, kwargs: Any) -> tuple[list[Any], list[Any]]:
        """The tensors that are only read, and those that are written."""
        if self._function is None:
            self.function  # noqa: B018  (reads the schema)
        read: list[Any] = []
        written: list[Any] = []
        for at, value in enumerate(args):
            self._sort(value, written if self._writes[at] else read)
        for name, value in kwargs.items():
            self._sort(value, written if self._writes[self._names.index(name)] else read)
        return read, written

    def read(self, inputs: list[Any], written: list[Any]) -> list[Any]:
        """Those whose values matter: a pure output's do not."""
        return inputs if any(self._out) or self._overwrites() else [*inputs, *written]

    def _overwrites(self) -> bool:
        short = self.base.removeprefix("aten::")
        return short in ("fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_",
                         "exponential_", "log_normal_", "cauchy_", "geometric_")  # fmt: skip

    def _sort(self, value: Any, into: list[Any]) -> None:
        if isinstance(value, self._torch.Tensor):
            into.append(value)
        elif isinstance(value, list | tuple):
            for one in value:
                if isinstance(one, list | tuple):
                    self._sort(one, into)
                elif isinstance(one, self._torch.Tensor):
                    into.append(one)

    def fresh(self, result: Any, written: list[Any]) -> list[Any]:
        """The tensors of a result that are none of those that were written."""
        found: list[Any] = []
        self._sort(result if isinstance(result, list | tuple) else (result,), found)
        if not written:
            return found
        return [one for one in found if not any(one is other for other in written)]

    def fresh_of_host(self, result: Any) -> list[Any]:
        """The same of what the host computed; operators that write return what they wrote."""
        if any(self._writes):
            return []
        found: list[Any] = []
        self._sort(result if isinstance(result, list | tuple) else (result,), found)
        return found


def _span(tensor: Any) -> tuple[int, int]:
    """The bytes of its storage from a tensor's first to its last element."""
    size = tensor.element_size()
    reach = sum((n - 1) * s for n, s in zip(tensor.size(), tensor.stride(), strict=True))
    first = tensor.storage_offset() * size
    return first, first + (reach + 1) * size


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write
