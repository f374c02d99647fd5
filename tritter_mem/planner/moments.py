"""What is alive at a step of the model: named tensors, and what they add up to.

A layer's run is written down as steps, each the names of the tensors that are alive in it. Which
names there are and how large they are follows from the sizes; the peak is the largest step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tritter_mem import torch_release
from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Profile
from tritter_mem.results.run import Components

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


Live = Mapping[str, int]
WORKSPACE_PREFIXES = ("packed_", "cast_", "expanded_", "delta", "attention_scratch", "norm_sums")


@dataclass(frozen=True)
class Moment:
    """A point in time: which phase, what runs, and what is alive by component.

    Attributes:
        phase: name of the phase.
        step: what runs, in words.
        parts: component name (`activations`) to bytes.
    """

    phase: str
    step: str
    parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Everything that is alive."""
        return sum(self.parts.values())

    def plus(self, parts: Mapping[str, int]) -> Moment:
        """The same point in time with more alive."""
        total = dict(self.parts)
        for name, count in parts.items():
            total[name] = total.get(name, 0) + count
        return Moment(self.phase, self.step, total)

    def at(self, place: str) -> Moment:
        """The same moment, said to be in a layer."""
        return replace(self, step=f"{place}, {self.step}")

    def components(self) -> Components:
        """As the result record holds them."""
        return Components(**{f"{name}_bytes": count for name, count in self.parts.items()})


def alive(names: Iterable[str], sizes: Live) -> dict[str, int]:
    """Bytes of the named tensors as activations and workspace."""
    found = {"activations": 0, "workspace": 0}
    for name in set(names):
        scratch = name.startswith(WORKSPACE_PREFIXES)
        found["workspace" if scratch else "activations"] += sizes.get(name, 0)
    return found


def highest(moments: Iterable[Moment]) -> Moment:
    """The moment with most alive; the first of equals."""
    return max(moments, key=lambda moment: moment.total_bytes)


def row_bytes(sizes: Sizes, width: int) -> int:
    """int8 rows: codes, a float32 scale and an int32 sum a token."""
    return sizes.tokens * (width + 8)


def activation_bytes(sizes: Sizes, width: int) -> int:
    """Rows in the activations' type."""
    return sizes.tokens * width * sizes.compute


def rounded_weight_bytes(sizes: Sizes, per_byte: int) -> dict[str, int]:
    """What a training product makes of its weights: packed ones and a scale, or a cast; by name."""
    if sizes.ternary:
        return {
            f"packed_{name}": rows * (ceil_div(columns, per_byte) + 4)
            for name, (rows, columns) in sizes.linears.items()
        }
    if not sizes.casts:
        return {}
    return {
        f"packed_{name}": rows * columns * sizes.compute
        for name, (rows, columns) in sizes.linears.items()
    }


def captures(profile: Profile) -> bool:
    """Whether decode replays a CUDA graph of its step."""
    return profile.workload.cuda_graph and profile.workload.new_tokens > 1


def library_bytes(profile: Profile, card: GpuCard) -> int:
    """Workspaces of cuBLAS: one a handle and stream, and each thread has its own handle.

    Training has two, because the backward pass runs in a thread of its own; so has a decode step
    that is captured, on a stream of its own. The vision tower's products have a bias, for which
    cuBLASLt may take one more in the first thread. Where PyTorch gives a workspace back after each
    call, the plan takes it that one is there at the peak, which is one too many for some peaks.
    """
    if not torch_release.keeps_workspaces():
        return card.cublas_workspace_bytes
    work = profile.workload
    handles = 2 if work.mode == "training" or captures(profile) else 1
    with_bias = 0 if profile.model.vision is None else torch_release.cublaslt_workspace_bytes()
    return handles * card.cublas_workspace_bytes + with_bias
