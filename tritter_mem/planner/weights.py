"""Parameters and bytes of the weights: linear layers, norms, embeddings."""

from __future__ import annotations

from tritter_mem.config.profile import Profile
from tritter_mem.planner.moments import (
    DTYPE_BYTES,
    INT4_GROUP,
    TERNARY_PER_BYTE,
    Sizes,
    ceil_div,
    sizes_of,
)
from tritter_mem.planner.vision import vision_parameters

ROW_UNIT, WHOLE_LOADS_FROM = 16, 320


def linear_parameters(profile: Profile) -> int:
    """Parameters of all linear layers."""
    sizes = sizes_of(profile, 1)
    return sizes.layers * sum(rows * columns for rows, columns in sizes.linears.values())


def norm_parameters(profile: Profile) -> int:
    """Parameters of all norms: two a layer, query and key norms, and the last one."""
    sizes = sizes_of(profile, 1)
    layer = 2 * sizes.hidden + (2 * sizes.head_dim if profile.model.qk_norm else 0)
    return sizes.layers * layer + sizes.hidden


def embedding_parameters(profile: Profile) -> int:
    """Parameters of the embedding and, unless it is tied, the output projection."""
    tables = 1 if profile.model.tie_word_embeddings else 2
    return tables * profile.model.vocab_size * profile.model.hidden_size


def parameters(profile: Profile) -> int:
    """All parameters of the language model, and of the vision tower where there is one."""
    language = linear_parameters(profile) + norm_parameters(profile)
    return language + embedding_parameters(profile) + vision_parameters(profile)


def linear_bytes(rows: int, columns: int, weight_format: str) -> int:
    """One stored linear layer with its scales.

    Ternary: a packed row of `packed_row_bytes` and a float32 scale an output. int8: a
    float32 scale an output. int4: a float16 scale for each 128 inputs of an output.
    """
    if weight_format in TERNARY_PER_BYTE:
        return rows * (packed_row_bytes(columns, weight_format) + 4)
    if weight_format == "int8":
        return rows * (columns + 4)
    if weight_format == "int4":
        return rows * (ceil_div(columns, 2) + 2 * ceil_div(columns, INT4_GROUP))
    return rows * columns * DTYPE_BYTES[weight_format]


def packed_row_bytes(columns: int, weight_format: str) -> int:
    """Ternary codes of one row: ceil(K / 4) bytes at 2 bits, ceil(K / 5) at 1.6.

    From 320 inputs on, rows at 1.6 bits are whole 16 bytes, which a thread loads at once.
    """
    width = ceil_div(columns, TERNARY_PER_BYTE[weight_format])
    if weight_format == "ternary-1.6bit" and columns >= WHOLE_LOADS_FROM:
        return ROW_UNIT * ceil_div(width, ROW_UNIT)
    return width


def packed_linear_bytes(profile: Profile) -> int:
    """The linear layers' codes alone, without scales: N * ceil(K / 4) bytes each at 2 bits."""
    form, sizes = profile.weights.format, sizes_of(profile, 1)
    layer = sum(rows * packed_row_bytes(columns, form) for rows, columns in sizes.linears.values())
    return sizes.layers * layer


def weights_bytes(profile: Profile) -> int:
    """Linear layers and norms, as inference stores them or as training does (master weights)."""
    sizes = sizes_of(profile, 1)
    if profile.workload.mode == "training":
        return (linear_parameters(profile) + norm_parameters(profile)) * sizes.master
    form = profile.weights.format
    layer = sum(linear_bytes(rows, columns, form) for rows, columns in sizes.linears.values())
    return sizes.layers * layer + norm_parameters(profile) * sizes.compute


def embeddings_bytes(profile: Profile) -> int:
    """Embedding and output projection; int8 tables have a float32 scale a row."""
    if profile.workload.mode == "training":
        return embedding_parameters(profile) * DTYPE_BYTES[profile.training.master_dtype]
    dtype = profile.weights.embedding_dtype
    tables = 1 if profile.model.tie_word_embeddings else 2
    scales = 4 * tables * profile.model.vocab_size if dtype == "int8" else 0
    return embedding_parameters(profile) * DTYPE_BYTES[dtype] + scales


def layer_gradients(sizes: Sizes, qk_norm: bool) -> dict[str, int]:
    """Bytes of the gradients of one layer's parameters, by name; they have the master type."""
    found = {name: rows * columns * sizes.master for name, (rows, columns) in sizes.linears.items()}
    norm = sizes.hidden * sizes.master
    head_norms = 2 * sizes.head_dim * sizes.master if qk_norm else 0
    return {**found, "input_norm": norm, "mlp_norm": norm, "qk_norms": head_norms}
