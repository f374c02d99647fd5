"""Text from outside, made safe to show."""

from __future__ import annotations

import re
from collections.abc import Sequence

# C0 and C1 controls, line and paragraph separators, and the characters that change text direction.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def either(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def printable(text: object, limit: int | None = None) -> str:
    """Text with control and direction characters as escapes, cut to `limit` characters."""
    shown = str(text)
    if limit is not None and len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return _UNPRINTABLE.sub(_escape, shown)


# PyTorch's name of an operator and of which overload of it; often in brackets behind a module.
_OPERATOR = re.compile(r"\b(?:aten|prims)(?:\.|::)(\w+)(?:\.\w+)?")
_BEHIND_A_MODULE = re.compile(rf"(?<=\w) \({_OPERATOR.pattern}\)")


def operators_by_name(text: str) -> str:
    """Text with PyTorch's operators as people call them.

    `Transformer.out (aten.mm.default)` becomes `Transformer.out, mm()`.
    """
    return _OPERATOR.sub(r"\1()", _BEHIND_A_MODULE.sub(r", \1()", text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
