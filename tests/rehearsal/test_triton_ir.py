"""Which arguments of a Triton kernel are written, read from its intermediate representation."""

from __future__ import annotations

import pytest

from tritter_mem.rehearsal.inside.triton_kernels import written_arguments

HEAD = (
    '  tt.func public @k(%x: !tt.ptr<f32> {tt.divisibility = 16 : i32} loc("x"(#loc)), '
    '%r: !tt.ptr<f32> loc("r"(#loc24)), %r_0: !tt.ptr<f32> loc("r"(#loc25)), '
    '%n: i32 loc("n"(#loc))) attributes {noinline = false} {'
)
LOADS = "%v = tt.load %x : !tt.ptr<f32> loc(#loc1)"
LOOP = """
    %c1 = arith.constant 1 : i32 loc(#loc3)
    %a:3 = scf.for %i = %c1 to %n step %c1 iter_args(%p = %x, %q = %r, %s = %c1) -> (f32)  : i32 {
      %v = tt.load %p : !tt.ptr<f32> loc(#loc35)
      tt.store %q, %v : !tt.ptr<f32> loc(#loc14)
      %p_18 = tt.addptr %p, %c1 : !tt.ptr<f32>, i32 loc(#loc37)
      %q_19 = tt.addptr %q, %c1 : !tt.ptr<f32>, i32 loc(#loc38)
      scf.yield %p_18, %q_19, %v : !tt.ptr<f32>, !tt.ptr<f32>, f32 loc(#loc3)
    } loc(#loc48)
"""
SWAPPED = LOOP.replace("yield %p_18, %q_19", "yield %q_19, %p_18")
AFTER_LOOP = LOOP.replace("tt.store %q, %v", "tt.nothing %v") + "tt.store %a#1, %a#2 : f32"
CHOICE = """
    %o = scf.if %n -> (!tt.ptr<f32>) {
      scf.yield %r_0 : !tt.ptr<f32> loc(#loc3)
    } else {
      scf.yield %r : !tt.ptr<f32> loc(#loc3)
    } loc(#loc4)
    %2 = tt.atomic_rmw fadd, acq_rel, gpu, %o, %n, %n : (!tt.ptr<f32>, f32, i1) -> f32 loc(#loc5)
"""
WHILE = """
    %b:2 = scf.while (%m = %n, %q = %r) : (i32, !tt.ptr<f32>) -> (i32, !tt.ptr<f32>) {
      scf.condition(%m) %m, %q : i32, !tt.ptr<f32> loc(#loc19)
    } do {
    ^bb0(%m_1: i32 loc("n"(#loc26)), %q_1: !tt.ptr<f32> loc("q"(#loc48))):
      tt.store %q_1, %m_1 : f32 loc(#loc21)
      %q_2 = tt.addptr %x, %m_1 : !tt.ptr<f32>, i32 loc(#loc41)
      scf.yield %m_1, %q_2 : i32, !tt.ptr<f32> loc(#loc18)
    } loc(#loc46)
"""
REDUCED = """
    %v = tt.load %x : !tt.ptr<f32> loc(#loc35)
    %m = "tt.reduce"(%v) <{axis = 0 : i32}> ({
    ^bb0(%c: f32 loc(#loc1), %d: f32 loc(#loc1)):
      %e = arith.maxnumf %c, %d : f32 loc(#loc2)
      tt.reduce.return %e : f32 loc(#loc2)
    }) : (tensor<8xf32>) -> f32 loc(#loc2)
    tt.store %r, %m : !tt.ptr<f32> loc(#loc3)
"""
UNKNOWN = "%u = ttng.async_copy %r_0, %n : !tt.ptr<f32> loc(#loc1)"
LAST = f"{LOADS}\n%u = arith.select %n, %r, %r_0 : !tt.ptr<f32>\ntt.store %u, %v : f32 loc(#loc1)"


@pytest.mark.parametrize(
    ("body", "written"),
    [
        (LOADS, ""),
        (LOOP, "r"),
        (SWAPPED, "x r"),  # after the first time, they have changed places
        (AFTER_LOOP, "r"),
        (CHOICE, "r other"),
        (WHILE, "x r"),
        (REDUCED, "r"),
        (UNKNOWN, "other"),
        (LAST, "r other"),
    ],
)
def test_pointers_are_followed_to_what_is_written(body: str, written: str) -> None:
    text = f"module {{\n{HEAD}\n{body}\n    tt.return loc(#loc)\n  }} loc(#loc)\n}} loc(#loc)\n"
    assert written_arguments(text, ["x", "r", "other"]) == frozenset(written.split())


def test_what_is_not_understood_is_said() -> None:
    assert written_arguments("", []) is None
    assert written_arguments(f"{HEAD}\n}}\n", ["x"]) is None
    assert written_arguments(f"{HEAD}\n cf.br ^bb1\n}}\n", ["x", "r", "other"]) is None
    assert written_arguments(f"{HEAD}\n}}\n{HEAD}\n}}\n", ["x", "r", "other"]) is None
