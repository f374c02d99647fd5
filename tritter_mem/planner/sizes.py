"""The numbers that every formula needs, taken from a profile once."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.config.schema import Profile

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1}
TERNARY_PER_BYTE = {"ternary-2bit": 4, "ternary-1.6bit": 5}
TRAINED_PER_BYTE = 4
"""Training rounds to the 2-bit format for a product, whatever inference stores."""
INT4_GROUP = 128
EXPANDED_ROWS = 4096
"""Rows of int8 and int4 weights that are expanded at a time."""


@dataclass(frozen=True)
class Sizes:
    """Widths, counts and bytes an element.

    Attributes:
        tokens: batch times the tokens of one sequence that run at once.
        hidden: width of the residual stream.
        attention: query heads times head width.
        kv: key-value heads times head width.
        inner: intermediate width of the MLP.
        compute: bytes of an activation.
        master: bytes of a trained weight and of its gradient.
        ternary: whether linear layers take int8 rows and ternary weights.
        casts: whether activations have another type than trained weights.
    """

    tokens: int
    batch: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    compute: int
    master: int
    ternary: bool
    casts: bool

    @property
    def attention(self) -> int:
        """Width of the attention's output."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def qkv(self) -> int:
        """Width of the fused projection."""
        return self.attention + 2 * self.kv

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one layer: name to (outputs, inputs)."""
        return {
            "qkv": (self.qkv, self.hidden),
            "out": (self.hidden, self.attention),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
        }


def sizes_of(profile: Profile, tokens_of_a_sequence: int) -> Sizes:
    """The sizes of a profile when `tokens_of_a_sequence` of each sequence run at once."""
    model, batch = profile.model, profile.workload.batch
    return Sizes(
        tokens=batch * tokens_of_a_sequence,
        batch=batch,
        layers=model.num_hidden_layers,
        hidden=model.hidden_size,
        heads=model.num_attention_heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_width,
        inner=model.intermediate_size,
        vocabulary=model.vocab_size,
        compute=DTYPE_BYTES[compute_dtype(profile)],
        master=DTYPE_BYTES[profile.training.master_dtype],
        ternary=profile.weights.format in TERNARY_PER_BYTE,
        casts=compute_dtype(profile) != profile.training.master_dtype,
    )


def compute_dtype(profile: Profile) -> str:
    """Type of the activations: the weights' own where that is float16 or float32, else bfloat16."""
    weights = profile.weights.format
    return weights if weights in ("float16", "float32") else "bfloat16"


def layers_by_window(profile: Profile) -> dict[int | None, int]:
    """How many layers attend to a window of so many tokens; None: to all."""
    model = profile.model
    layers, every = model.num_hidden_layers, model.global_attention_every
    reach_all = 0 if every is None else layers // every
    if model.sliding_window is None:
        return {None: layers}
    counts = {None: reach_all, model.sliding_window: layers - reach_all}
    return {window: count for window, count in counts.items() if count}


def ceil_div(number: int, by: int) -> int:
    """Divide and round up."""
    return -(-number // by)
