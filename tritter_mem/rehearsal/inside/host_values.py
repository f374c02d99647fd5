"""Values that nothing computed, on the host: followed through its operators and numbers.

A tensor that the device's unknown values were copied to is marked on its storage, which PyTorch
keeps as long as the memory lives. From the first such copy on, the kernels of the host pass marks
on from what they read to what they write. A real number that is read becomes an `Uncomputed`, a
float that carries on in sums and says so where it is compared.

What leaves PyTorch otherwise (an array of NumPy, `float(loss)`, a pickled number) cannot be
followed: the line is noted.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

KNOWN, ASSUMED, UNKNOWN = 0, 1, 2
DECIDED, BY_RULE, NOT_FOLLOWED = "decided", "assumed", "not_followed"
MOST_NUMBERS = 16_384
"""Numbers of a list that are followed one by one."""
_MARK = "_tritter_state"
_SHAPED_BY_VALUES = {
    "aten::nonzero", "aten::nonzero_numpy", "aten::masked_select", "aten::_unique2",
    "aten::_unique", "aten::unique_dim", "aten::unique_consecutive",
    "aten::unique_dim_consecutive", "aten::repeat_interleave", "aten::bincount",
}  # fmt: skip
_FINITE = {"aten::isnan", "aten::isinf", "aten::isfinite"}
_COMPOSITE = {"aten::copy_", "aten::isfinite", "aten::isinf"}
"""Without a kernel of the host's own, and followed all the same."""
_CARRIED = (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "floordiv",
    "rfloordiv", "mod", "rmod", "neg", "pos", "abs", "round",
)  # fmt: skip
_COMPARED = ("lt", "le", "gt", "ge", "eq", "ne", "bool", "int", "trunc", "floor", "ceil",
             "divmod", "rdivmod")  # fmt: skip
_OF_MATH = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "cbrt", "pow", "fabs", "fmod",
    "sin", "cos", "tan", "tanh", "atan", "erf", "hypot", "copysign", "remainder", "fsum",
)  # fmt: skip
_FINITE_OF_MATH = {"isnan": False, "isinf": False, "isfinite": True}


class HostValues:
    """The marks of this process's host memory.

    Args:
        torch: the module.
        decided: called with the kind of a decision; notes the line that asked.
        read: told of a tensor that becomes a number of Python, and of its state.
        operators: makes of a name and its kernel what reads its schema.
        left_out: operators whose result is a view, which has its storage's mark.
    """

    def __init__(self, torch: Any, decided: Callable[[str], None],
                 read: Callable[[Any, int], None], operators: Callable[[Any, str, Any], Any],
                 left_out: Iterable[str]) -> None:  # fmt: skip
        self._torch = torch
        self._decided = decided
        self._read = read
        self._operators = operators
        self._left_out = frozenset(left_out)
        self._library: Any = None
        self.number = _uncomputed_class(decided)

    def state(self, tensor: Any) -> int:
        """Whether a tensor's values are known; of a tensor without a storage they are."""
        try:
            found: int = getattr(tensor.untyped_storage(), _MARK, KNOWN)
        except (RuntimeError, NotImplementedError):
            return KNOWN
        return found

    def mark(self, tensor: Any, state: int) -> None:
        """Note it of the whole storage; the first time that something is not known, follow."""
        storage = tensor.untyped_storage()
        if state != getattr(storage, _MARK, KNOWN):
            setattr(storage, _MARK, state)
        if state != KNOWN:
            self._follow()

    # The kernels of the host

    def _follow(self) -> None:
        if self._library is not None:
            return
        torch = self._torch
        self._library = torch.library.Library("aten", "IMPL")  # kept: kernels go with it
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in torch._C._dispatch_get_all_op_names():
                short = name.partition(".")[0].removeprefix("aten::")
                wanted = name.startswith("aten::") and has(name, "CPU")
                if (wanted or name in _COMPOSITE) and short not in self._left_out:
                    self._replace(name)

    def _replace(self, name: str) -> None:
        torch = self._torch
        operator = self._operators(torch, name, torch.library.get_kernel(name, "CPU"))
        run = self._scalar if operator.base == "aten::_local_scalar_dense" else self._passed_on

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            return run(operator, keyset, operator.with_tensors(args), kwargs)

        short = name.partition("::")[2]
        self._library.impl(short, kernel, "CPU", with_keyset=True, allow_override=True)

    def _passed_on(self, operator: Any, keyset: Any, args: Any, kwargs: Any) -> Any:
        result = operator.kernel.call_boxed(keyset, *args, **kwargs)
        inputs, written = operator.tensors(args, kwargs)
        if not inputs and not written:
            return result
        if operator.base == "aten::copy_":
            self._copied(args[0], args[1])
            return result
        read = operator.read(inputs, written)
        state = max((self.state(one) for one in read), default=KNOWN)
        if state == KNOWN:
            return result
        if operator.base in _SHAPED_BY_VALUES:
            self._decided(DECIDED if state == UNKNOWN else BY_RULE)
        finite = operator.base in _FINITE  # what is unknown is taken to be
        for tensor in [*operator.fresh(result, written), *written]:
            self.mark(tensor, ASSUMED if finite else max(state, self.state(tensor)))
        return result

    def _copied(self, to: Any, source: Any) -> None:
        state = self.state(source)
        whole = to.numel() * to.element_size() >= to.untyped_storage().nbytes()
        self.mark(to, state if whole else max(state, self.state(to)))

    def _scalar(self, operator: Any, keyset: Any, args: Any, kwargs: Any) -> Any:
        found = operator.kernel.call_boxed(keyset, *args, **kwargs)
        self._read(args[0], self.state(args[0]))
        return found

    # Numbers

    def install(self) -> None:
        """See the ways in which a tensor's values leave PyTorch."""
        self._patch_lists()
        _patch_math(self._decided, self.number)

    def _patch_lists(self) -> None:
        Tensor = self._torch.Tensor
        to_list, to_array = Tensor.tolist, Tensor.numpy

        def tolist(tensor: Any) -> Any:
            host = tensor.cpu()
            found = to_list(host)
            if not host.is_floating_point() or self.state_of_any(host) != UNKNOWN:
                return found
            if host.numel() <= MOST_NUMBERS:
                return _each(found, self.number)
            self._decided(NOT_FOLLOWED)
            return found

        def numpy(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state_of_any(tensor) == UNKNOWN:
                self._decided(NOT_FOLLOWED)
            return to_array(tensor, *args, **kwargs)

        Tensor.tolist, Tensor.numpy = tolist, numpy

    def state_of_any(self, tensor: Any) -> int:
        """`state`, of what is no plain tensor of the host too."""
        try:
            return self.state(tensor) if tensor.device.type == "cpu" else KNOWN
        except Exception:
            return KNOWN


def _each(value: Any, of: Callable[[float], Any]) -> Any:
    return [_each(one, of) for one in value] if isinstance(value, list) else of(value)


def _uncomputed_class(decided: Callable[[str], None]) -> type[float]:
    """Numbers that carry on in sums and products, and note the line where they are compared."""

    class Uncomputed(float):
        __slots__ = ()
        __hash__ = float.__hash__

        def __copy__(self) -> Any:
            return self

        def __deepcopy__(self, memo: Any) -> Any:
            return self

        def __float__(self) -> float:
            decided(NOT_FOLLOWED)
            return float.__add__(self, 0.0)

        def __reduce__(self) -> Any:
            decided(NOT_FOLLOWED)
            return float, (float.__repr__(self),)

        def as_integer_ratio(self) -> Any:
            decided(NOT_FOLLOWED)
            return float.as_integer_ratio(self)

        def is_integer(self) -> bool:
            decided(DECIDED)
            return float.is_integer(self)

    def carried(name: str) -> Any:
        plain = getattr(float, name)

        def run(self: Any, *others: Any) -> Any:
            found = plain(self, *others)
            if type(found) is int:
                decided(DECIDED)
            return Uncomputed(found) if type(found) is float else found

        return run

    def compared(name: str) -> Any:
        plain = getattr(float, name)

        def run(self: Any, *others: Any) -> Any:
            decided(DECIDED)
            return plain(self, *others)

        return run

    for name in _CARRIED:
        setattr(Uncomputed, f"__{name}__", carried(f"__{name}__"))
    for name in _COMPARED:
        setattr(Uncomputed, f"__{name}__", compared(f"__{name}__"))
    return Uncomputed


def _patch_math(decided: Callable[[str], None], number: type[float]) -> None:
    """Functions of `math` read a float's bits, past its methods."""

    def carried(plain: Any) -> Any:
        def run(*args: Any) -> Any:
            found = plain(*args)
            return number(found) if any(type(one) is number for one in _flat(args)) else found

        return run

    def ruled(plain: Any, answer: bool) -> Any:
        def run(value: Any, /) -> bool:
            if type(value) is not number:
                return bool(plain(value))
            decided(BY_RULE)
            return answer

        return run

    for name in _OF_MATH:
        if hasattr(math, name):
            setattr(math, name, carried(getattr(math, name)))
    for name, answer in _FINITE_OF_MATH.items():
        setattr(math, name, ruled(getattr(math, name), answer))


def _flat(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], list | tuple) else args


@contextmanager
def quietly(thread: Any) -> Any:
    """What is shown decides nothing: lines are not noted meanwhile."""
    before = getattr(thread, "quiet", False)
    thread.quiet = True
    try:
        yield
    finally:
        thread.quiet = before
