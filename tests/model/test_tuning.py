"""The switches between variants of kernels: one current value, changed for a block of code."""

import pytest

from tritter_model.ops.tuning import Tuning, tuned, tuning


def test_changes_hold_inside_a_block_and_end_with_it() -> None:
    before = tuning()
    with tuned(fused_merge=True) as outer:
        assert tuning() is outer
        with tuned(decode_programs=3):
            assert tuning() == Tuning(fused_merge=True, decode_programs=3)
        assert tuning() is outer
    assert tuning() is before


def test_an_error_inside_ends_the_change_too() -> None:
    with pytest.raises(ZeroDivisionError), tuned(angles_once=True):
        _ = 1 // 0
    assert tuning() == Tuning()


def test_a_choice_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match="stages"), tuned(stages=3):
        pass
