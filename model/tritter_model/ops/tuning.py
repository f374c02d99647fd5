"""Choices that change how long a step takes and not what it computes.

Each is a switch between variants that a benchmark on a card compares; the defaults are what is
used until one has. `tuned` changes some for a block of code:

    with tuned(angles_once=True, fused_merge=True):
        ...

A choice is read when an operator is launched. A CUDA graph keeps what was chosen at its capture.
Memory plans follow what is chosen while they are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Tuning:
    """What there is to choose.

    A loop of N stages copies the tiles of N - 1 trips ahead to shared memory. With 2 the compiler
    waits for a trip's copies before it multiplies anything, and starts the next ones when all
    products are done: they take turns. From 3 on a trip's products run while copies are under way.

    Attributes:
        many_rows_stages: of the ternary product of many tokens, in tiles of 128 tokens. Four do not
            fit the 99 KiB that a program has with compute capability 12.0.
        many_rows_small_stages: the same in tiles of 64 x 64, whose shared memory holds one more.
        many_rows_tile: outputs of its large tile, 128 or 256. With 256 each byte of activations
            that is read from shared memory meets twice the weights. Other cards than Hopper, whose
            registers do not hold the sums, take 128 in any case.
        backward_stages: of both kernels of attention's gradients, for heads up to 128 wide in 16
            bits. Three fit every card of compute capability 8.0 and above.
        decode_programs: programs a multiprocessor that decode attention splits the cache for, 2 to
            4. More have more loads under way, and more partial outputs to merge. Three and four are
            rounded down to splits that all run at once; two are rounded up, so that some splits may
            run after the others.
        decode_pairs: decode attention reads keys and values by pairs of bytes, which tensor cores
            take as they lie in shared memory, rather than by words, which are turned through it
            once they are bfloat16. Half of the shared memory, so that four programs of an int4
            cache fit that of compute capability 8.0. Where fewer than 64 bytes share a scale
            (int2), or an odd number, it changes nothing.
        decode_warps: of a program that reads by pairs, 2 or 4. Two of four repeat what the others
            do with values of 128 channels. Two alone spill registers on other cards than Hopper,
            which take 4 in any case.
        angles_once: cosine and sine of a step's positions are computed once, and read in each
            layer, rather than computed in float64 in each layer.
        fused_merge: decode attention merges its splits and quantises the merged rows in one launch,
            rather than in two with the rows in memory between them.
        fused_add_norm: what a layer's attention or MLP gives is added to the residual stream in the
            launch that normalises and quantises the stream next.
        dependent_launch: kernels of a decode step start before the one ahead of them has ended
            (`dependent`). A captured step chooses it: nothing else may, where weights are written.
    """

    many_rows_stages: int = 3
    many_rows_small_stages: int = 4
    many_rows_tile: int = 128
    backward_stages: int = 3
    decode_programs: int = 4
    decode_pairs: bool = True
    decode_warps: int = 4
    angles_once: bool = False
    fused_merge: bool = False
    fused_add_norm: bool = False
    dependent_launch: bool = False


_current = [Tuning()]


def tuning() -> Tuning:
    """What is chosen now."""
    return _current[-1]


def splits_for_the_card(pairs: int, multiprocessors: int) -> int:
    """Splits of the cache for `decode_programs`, where so many programs have one split each.

    The planner of memory reads it too, as each split has scratch. It may be 0.
    """
    programs = tuning().decode_programs * multiprocessors
    return -(-programs // pairs) if tuning().decode_programs <= 2 else programs // pairs


@contextmanager
def tuned(**changes: Any) -> Iterator[Tuning]:
    """Change some choices for what runs inside; the rest stay as they are.

    Raises:
        TypeError: there is no such choice.
    """
    _current.append(replace(tuning(), **changes))
    try:
        yield tuning()
    finally:
        _current.pop()
