"""Triton kernels compute nothing here: what they write is not known from then on.

Which arguments a kernel writes is read from its intermediate representation (TTIR), which Triton
made before. Pointers are followed from the arguments to stores and atomic operators. Where an
operator is met that is not known here, what it is given counts as written.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Written = frozenset[str]
"""Names of arguments."""
_PLACE = re.compile(r" loc\((?:[^()]|\([^()]*\))*\)")
_NAME = re.compile(r"%[\w$.-]+(?:#\d+)?")
_RESULT = re.compile(r"^(%[\w$.-]+)(?::(\d+))? = (.*)$")
_OPERATOR = re.compile(r'^"?([\w.]+)')
_PAIR = re.compile(r"(%[\w$.-]+) = (%[\w$.-]+(?:#\d+)?)")
_POINTERS = re.compile(r"(%[\w$.-]+): !tt\.(?:ptr|tensordesc)")
_STORES = {
    "tt.store", "tt.atomic_rmw", "tt.atomic_cas", "tt.descriptor_store", "tt.descriptor_reduce",
    "tt.descriptor_scatter", "tt.experimental_descriptor_store",
}  # fmt: skip
_LOADS = {
    "tt.load", "tt.descriptor_load", "tt.descriptor_gather", "tt.experimental_descriptor_load",
}  # fmt: skip
_PASS_ON = re.compile(
    r"arith\.|math\.|tt\.(?:splat|broadcast|addptr|expand_dims|bitcast|reshape|trans|advance|cat|"
    r"join|split|make_tensor_ptr|make_tensor_descriptor|ptr_to_int|int_to_ptr|dot|reduce|scan)"
)


def written_arguments(ttir: str, pointers: Sequence[str]) -> Written | None:
    """The pointers among a kernel's arguments that it may write through.

    Args:
        ttir: the text of a module with one function.
        pointers: the names of these arguments, in order.

    Returns:
        Some of the names; None where the text is not understood.
    """
    lines = [_PLACE.sub("", line).strip() for line in ttir.splitlines()]
    heads = [at for at, line in enumerate(lines) if line.startswith("tt.func ")]
    if len(heads) != 1 or any(line.startswith("cf.") for line in lines):
        return None
    taken = _POINTERS.findall(lines[heads[0]])
    if len(taken) != len(pointers):
        return None
    flow = _Flow(dict(zip(taken, pointers, strict=True)))
    while flow.grows(lines[heads[0] + 1 :]):  # loops hand pointers back
        pass
    return frozenset(flow.written)


class _Region(NamedTuple):
    """What encloses lines: its result, and the names of what is handed on in it."""

    result: str
    names: list[set[str]]


class _Flow:
    """From which arguments each value comes."""

    def __init__(self, arguments: dict[str, str]) -> None:
        self.sources = {name: {argument} for name, argument in arguments.items()}
        self.written: set[str] = set()

    def grows(self, body: list[str]) -> bool:
        """Go through the lines once; whether anything new was found."""
        before = self._size()
        regions: list[_Region] = []
        for line in body:
            if line.startswith("}"):
                if regions and not line.endswith("{"):  # else the second part of an `if` or `while`
                    regions.pop()
                continue
            if line.startswith("^") and regions:
                self._enter(regions[-1], _NAME.findall(line))
                continue
            found = _RESULT.match(line)
            result, operation = (found[1], found[3]) if found else ("", line)
            self._pass_on(result, operation, regions)
            if operation.endswith("{"):
                regions.append(_Region(result, self._handed_on(operation)))
        return self._size() > before

    def _enter(self, region: "_Region", names: list[str]) -> None:
        """A block's names for what is handed to it."""
        for name, others in zip(names, region.names, strict=False):
            self._add(name, set().union(*map(self._of, others)))
            others.add(name)

    @staticmethod
    def _handed_on(operation: str) -> list[set[str]]:
        """The names of what a loop hands from one time to the next."""
        if not operation.startswith(("scf.for", "scf.while")):
            return []
        found = re.match(r"scf\.for (?:unsigned )?(%[\w$.-]+) =", operation)
        return [{to} for to, _ in _PAIR.findall(operation) if found is None or to != found[1]]

    def _pass_on(self, result: str, operation: str, regions: list["_Region"]) -> None:
        name = (_OPERATOR.match(operation) or [""])[0].strip('"')
        operands = _NAME.findall(operation)
        if name in ("scf.yield", "scf.condition", "tt.reduce.return", "tt.scan.return"):
            self._yield(operands[name == "scf.condition" :], regions[-1])
        elif name in _STORES:
            self.written |= self._of(operands[0])
        elif name.startswith(("scf.for", "scf.while")):
            for to, source in _PAIR.findall(operation):
                self._add(to, self._of(source))
        elif name == "scf.if" or name in _LOADS:
            pass
        elif _PASS_ON.match(name):
            for operand in operands:
                self._add(result, self._of(operand))
        else:  # not known: it may write
            for operand in operands:
                self.written |= self._of(operand)
                self._add(result, self._of(operand))

    def _yield(self, operands: list[str], region: "_Region") -> None:
        for at, operand in enumerate(operands):
            source = self._of(operand)
            self._add(region.result if len(operands) == 1 else f"{region.result}#{at}", source)
            for name in region.names[at] if at < len(region.names) else ():
                self._add(name, source)

    def _of(self, name: str) -> set[str]:
        return self.sources.get(name, set())

    def _add(self, name: str, source: set[str]) -> None:
        if name and source:
            self.sources.setdefault(name, set()).update(source)

    def _size(self) -> int:
        return len(self.written) + sum(map(len, self.sources.values()))


class TritonKernels:
    """The launches of this process.

    Args:
        torch: the module.
        is_known: whether a tensor's values are known, or follow a rule.
        forget: called with a tensor whose values are not known any more.
    """

    def __init__(self, torch: Any, is_known: Callable[[Any], bool],
                 forget: Callable[[Any], None]) -> None:  # fmt: skip
        self._torch = torch
        self._is_known = is_known
        self._forget = forget
        self._written: dict[str, Written | None] = {}

    def watch_triton(self, jit: Any) -> None:
        """See kernels launched by Triton's own `kernel[grid](...)`."""
        plain = jit.JITFunction.run

        def run(function: Any, *args: Any, **kwargs: Any) -> Any:
            kernel = plain(function, *args, **kwargs)
            if kernel is not None and not kwargs.get("warmup"):
                given = dict(zip(function.arg_names, args, strict=False)) | kwargs
                self._launched(kernel, given)
            return kernel

        jit.JITFunction.run = run

    def watch_inductor(self, heuristics: Any) -> None:
        """See kernels that Inductor made: they name what they write."""
        plain = heuristics.CachingAutotuner.run

        def run(tuner: Any, *args: Any, **kwargs: Any) -> Any:
            result = plain(tuner, *args, **kwargs)
            names = getattr(tuner.fn, "arg_names", ())
            for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
                if name in tuner.mutated_arg_names:
                    self._forget_tensor(value)
            return result

        heuristics.CachingAutotuner.run = run

    def _launched(self, kernel: Any, given: dict[str, Any]) -> None:
        known = {name for name, value in given.items() if self._counts(value)}
        if not known:
            return
        written = self._written_by(kernel)
        for name in known:
            if written is None or name in written:
                self._forget_tensor(given[name])

    @staticmethod
    def _pointers(kernel: Any) -> list[str]:
        signature = getattr(kernel.src, "signature", {})
        return [
            name for name, kind in signature.items()
            if isinstance(kind, str) and kind.startswith(("*", "tensordesc"))
        ]  # fmt: skip

    def _written_by(self, kernel: Any) -> Written | None:
        key = str(kernel.hash)
        if key not in self._written:
            ttir = kernel.asm.get("ttir") if hasattr(kernel.asm, "get") else None
            self._written[key] = (
                written_arguments(ttir, self._pointers(kernel)) if isinstance(ttir, str) else None
            )
        return self._written[key]

    def _counts(self, value: Any) -> bool:
        tensor = self._tensor(value)
        return tensor is not None and self._is_known(tensor)

    def _forget_tensor(self, value: Any) -> None:
        tensor = self._tensor(value)
        if tensor is not None:
            self._forget(tensor)

    def _tensor(self, value: Any) -> Any:
        """The tensor that an argument is, or describes."""
        value = getattr(value, "base", value)
        is_tensor = isinstance(value, self._torch.Tensor) and value.device.type == "cuda"
        return value if is_tensor else None
