"""What the architecture's settings imply."""

from dataclasses import replace

import pytest

from tritter_model.config import ModelConfig


@pytest.mark.parametrize(
    ("weight_format", "is_ternary", "compute"),
    [
        ("ternary-2bit", True, "bfloat16"),
        ("ternary-1.6bit", True, "bfloat16"),
        ("int8", False, "bfloat16"),
        ("int4", False, "bfloat16"),
        ("bfloat16", False, "bfloat16"),
        ("float16", False, "float16"),
        ("float32", False, "float32"),
    ],
)
def test_weights_decide_the_type_of_the_residual_stream(
    config: ModelConfig, weight_format: str, is_ternary: bool, compute: str
) -> None:
    config = replace(config, weight_format=weight_format)
    assert (config.is_ternary, config.compute_dtype) == (is_ternary, compute)


def test_every_nth_layer_has_no_window(config: ModelConfig) -> None:
    hybrid = replace(config, sliding_window=4096, global_attention_every=4)
    assert [hybrid.window_of(i) for i in range(8)] == [4096, 4096, 4096, None] * 2
    assert replace(config, sliding_window=4096).window_of(3) == 4096
    assert config.window_of(3) is None
