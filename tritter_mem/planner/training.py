"""Training: what each layer keeps, and what is alive at each step of both passes.

The tables below write down one layer of `tritter_model`: which tensors are alive at each step,
which are kept for the backward pass, and since when. Saved bytes of a layer, everything kept, with
T tokens, hidden h, ratio g = key-value heads / heads, inner f, heads a:
2Th(6 + 2g) + 6Tf + 4Ta + 8T.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from tritter_mem.config.profile import Profile
from tritter_mem.planner.moments import (
    TRAINED_PER_BYTE,
    Moment,
    Sizes,
    activation_bytes,
    alive,
    highest,
    rounded_weight_bytes,
    row_bytes,
    sizes_of,
)
from tritter_mem.planner.vision import prefix_bytes, vision_moments
from tritter_mem.planner.weights import (
    embedding_parameters,
    layer_gradients,
    linear_parameters,
    norm_parameters,
)

OPTIMIZER_BLOCK = 256
NORM_SUMS = 256
TARGET_AND_ID_BYTES = 16
SCALAR_BYTES = 4

# x, x2, x3: residual stream before, between and after; norm1, norm2: normalised; rstd: one float32
# a token of each norm; rows_*: int8 rows; packed_*: rounded weights; y: a projection's result.
FORWARD = {
    "QKV projection": "x norm1 rows_hidden packed_qkv qkv",
    "attention": "x qkv rotated out lse",
    "output projection": "x out rows_out packed_out y",
    "residual": "x out y x2",
    "gate and up projection": "x x2 norm2 rows_hidden packed_gate_up gate_up",
    "MLP activation": "x x2 gate_up act",
    "down projection": "x x2 act rows_inner packed_down y",
    "second residual": "x x2 y x3",
}
SAVED_SINCE = {
    "x": 0, "norm1": 0, "rstd1": 0, "qkv": 0, "out": 1, "lse": 1,
    "x2": 3, "norm2": 4, "rstd2": 4, "gate_up": 4, "act": 5,
}  # fmt: skip
KEPT = {
    "all": tuple(SAVED_SINCE),
    "input": ("x",),
    "selective-attention": ("x", "out", "lse"),
    "selective-matmul": ("x", "qkv", "out", "lse", "gate_up"),
}
RESULTS = {"QKV projection": "qkv", "attention": "out", "gate and up projection": "gate_up"}
_BEFORE_MLP = "x norm1 rstd1 qkv out lse"
# Step: (what is alive, which gradients of the layer's weights are there).
BACKWARD = {
    "down projection, input gradient": (
        f"{_BEFORE_MLP} x2 norm2 rstd2 gate_up act grad grad_act packed_down", ""),
    "down projection, weight gradient": (
        f"{_BEFORE_MLP} x2 norm2 rstd2 gate_up act grad grad_act rows_inner", "down"),
    "MLP activation": (
        f"{_BEFORE_MLP} x2 norm2 rstd2 gate_up grad grad_act grad_gate_up", "down"),
    "gate and up projection, input gradient": (
        f"{_BEFORE_MLP} x2 norm2 rstd2 grad grad_gate_up grad_norm packed_gate_up", "down"),
    "gate and up projection, weight gradient": (
        f"{_BEFORE_MLP} x2 norm2 rstd2 grad grad_gate_up grad_norm rows_hidden", "down gate_up"),
    "MLP norm": (
        f"{_BEFORE_MLP} x2 rstd2 grad grad_norm grad_x", "down gate_up mlp_norm"),
    "output projection, input gradient": (
        f"{_BEFORE_MLP} grad grad_out packed_out", "down gate_up mlp_norm"),
    "output projection, weight gradient": (
        f"{_BEFORE_MLP} grad grad_out rows_out", "down gate_up mlp_norm out"),
    "attention": (
        f"{_BEFORE_MLP} grad grad_out rotated grad_qkv grad_rotated delta",
        "down gate_up mlp_norm out"),
    "rotation": (
        f"{_BEFORE_MLP} grad grad_out rotated grad_qkv grad_rotated norm_sums",
        "down gate_up mlp_norm out qk_norms"),
    "QKV projection, input gradient": (
        "x norm1 rstd1 grad grad_qkv grad_norm packed_qkv",
        "down gate_up mlp_norm out qk_norms"),
    "QKV projection, weight gradient": (
        "x norm1 rstd1 grad grad_qkv grad_norm rows_hidden",
        "down gate_up mlp_norm out qk_norms qkv"),
    "input norm": (
        "x rstd1 grad grad_norm grad_x",
        "down gate_up mlp_norm out qk_norms qkv input_norm"),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """What every function below needs: the sizes, the tensors' bytes, and the profile."""

    profile: Profile
    sizes: Sizes
    tensors: dict[str, int]
    gradients: dict[str, int]

    @classmethod
    def of(cls, profile: Profile) -> Step:
        """A training step over whole sequences."""
        sizes = sizes_of(profile, profile.workload.context)
        qk_norm = profile.model.qk_norm
        tensors = {**_tensors(sizes), "norm_sums": norm_sums_bytes(sizes) if qk_norm else 0}
        return cls(profile, sizes, tensors, layer_gradients(sizes, qk_norm))

    @property
    def stream(self) -> int:
        """Bytes of the residual stream."""
        return self.tensors["x"]

    def kept_by(self, layer: int) -> str:
        """Which of `KEPT` a layer keeps between the passes; in a segment the first one does."""
        policy, n = (
            self.profile.training.checkpointing.policy,
            self.profile.training.checkpointing.n,
        )
        if policy in ("none", "every-nth"):
            return "all" if policy == "none" or layer % n else "input"
        return policy if policy.startswith("selective") else "input"

    def segment_start(self, layer: int) -> int:
        """First of the layers that are recomputed together with this one."""
        checkpointing = self.profile.training.checkpointing
        return layer - layer % checkpointing.n if checkpointing.policy == "segments" else layer

    def segment_end(self, start: int) -> int:
        """Last of the layers that are recomputed together with the first, `start`."""
        checkpointing = self.profile.training.checkpointing
        length = checkpointing.n if checkpointing.policy == "segments" else 1
        return min(start + length, self.sizes.layers) - 1

    def kept_bytes(self, layer: int) -> int:
        """What a layer holds at the end of the forward pass."""
        if self.segment_start(layer) != layer:
            return 0
        return sum(self.tensors[name] for name in KEPT[self.kept_by(layer)])

    def saved_bytes(self) -> int:
        """What a layer holds when everything is kept, or is there again."""
        return sum(self.tensors[name] for name in SAVED_SINCE)

    def rounded_table_bytes(self) -> int:
        """The output projection cast to the activations' type, for the loss."""
        if not self.sizes.casts:
            return 0
        return self.sizes.vocabulary * self.sizes.hidden * self.sizes.compute

    def table_gradient_bytes(self) -> int:
        """The gradient of one embedding table."""
        return self.sizes.vocabulary * self.sizes.hidden * self.sizes.master


def _tensors(sizes: Sizes) -> dict[str, int]:
    stream = activation_bytes(sizes, sizes.hidden)
    gate_up = activation_bytes(sizes, 2 * sizes.inner)
    qkv = activation_bytes(sizes, sizes.qkv)
    rotated = activation_bytes(sizes, sizes.attention + sizes.kv)
    per_token, per_head = 4 * sizes.tokens, 4 * sizes.tokens * sizes.heads
    out = activation_bytes(sizes, sizes.attention)
    act = activation_bytes(sizes, sizes.inner)
    rows = row_bytes if sizes.ternary else _no_rows
    return {
        **dict.fromkeys(("x", "x2", "x3", "y", "norm1", "norm2"), stream),
        **dict.fromkeys(("grad", "grad_norm", "grad_x"), stream),
        **dict.fromkeys(("rstd1", "rstd2"), per_token),
        **dict.fromkeys(("lse", "delta"), per_head),
        **dict.fromkeys(("qkv", "grad_qkv"), qkv),
        **dict.fromkeys(("rotated", "grad_rotated"), rotated),
        **dict.fromkeys(("out", "grad_out"), out),
        **dict.fromkeys(("gate_up", "grad_gate_up"), gate_up),
        **dict.fromkeys(("act", "grad_act"), act),
        "rows_hidden": rows(sizes, sizes.hidden),
        "rows_out": rows(sizes, sizes.attention),
        "rows_inner": rows(sizes, sizes.inner),
        **rounded_weight_bytes(sizes, TRAINED_PER_BYTE),
    }


def norm_sums_bytes(sizes: Sizes) -> int:
    """float32 sums of the QK-norms' gradients, one for each of up to 256 parts of the tokens."""
    return 4 * min(NORM_SUMS, sizes.tokens) * 2 * sizes.head_dim


def _no_rows(sizes: Sizes, width: int) -> int:
    """A float layer takes its input as it is."""
    del sizes, width
    return 0


def optimizer_state_bytes(profile: Profile) -> int:
    """Two moments a parameter: float32, or 8 bits with a float32 scale for each block of 256.

    Blocks do not cross parameters. SGD keeps nothing. The frozen vision tower has no state.
    """
    optimizer = profile.training.optimizer
    if profile.workload.mode != "training" or optimizer == "sgd":
        return 0
    if optimizer == "adamw":
        trained = linear_parameters(profile) + norm_parameters(profile)
        return 8 * (trained + embedding_parameters(profile))
    return sum(
        count * (2 * numel + 8 * -(-numel // OPTIMIZER_BLOCK))
        for numel, count in _parameter_tensors(profile)
    )


def _parameter_tensors(profile: Profile) -> Iterator[tuple[int, int]]:
    """Size and number of each kind of trained tensor."""
    sizes = sizes_of(profile, 1)
    for rows, columns in sizes.linears.values():
        yield rows * columns, sizes.layers
    yield sizes.hidden, 2 * sizes.layers + 1
    if profile.model.qk_norm:
        yield 2 * sizes.head_dim, sizes.layers
    yield sizes.vocabulary * sizes.hidden, 1 if profile.model.tie_word_embeddings else 2


def training_moments(profile: Profile) -> Iterator[Moment]:
    """The highest moment of each phase, without what is alive throughout."""
    step = Step.of(profile)
    # The loss of the step before is alive too, then this one's, then the gradient of it: float32.
    batch = step.sizes.tokens * TARGET_AND_ID_BYTES + SCALAR_BYTES
    prefix = {"activations": prefix_bytes(profile)}
    forward = [moment.plus(prefix) for moment in _forward(step)]
    yield Moment("load", "weights")
    yield highest([*forward, *vision_moments(profile, "forward")]).plus({"activations": batch})
    yield highest(_backward(step)).plus({"activations": batch + 2 * SCALAR_BYTES})
    last = {"gradients": _all_gradients(step), "activations": batch + SCALAR_BYTES}
    yield Moment("optimizer", "step", last)


def _forward(step: Step) -> Iterator[Moment]:
    before = 0
    highest_of = {kept: _layer_forward(step, names) for kept, names in (*KEPT.items(), ("", ()))}
    for layer in range(step.sizes.layers):
        kept = step.kept_by(layer) if step.segment_start(layer) == layer else ""
        yield highest_of[kept].at(f"layer {layer}").plus({"activations": before})
        before += step.kept_bytes(layer)
    yield _loss(step, "forward").plus({"activations": before + SCALAR_BYTES})


def _layer_forward(step: Step, kept: Collection[str], steps: Mapping[str, str] = FORWARD) -> Moment:
    """A layer's highest moment in some steps, with what it keeps from each step on."""
    return highest(
        Moment("forward", name, alive(
            [*names.split(), *(t for t in kept if SAVED_SINCE[t] <= number)], step.tensors))
        for number, (name, names) in enumerate(steps.items())
    )  # fmt: skip


def _loss(step: Step, phase: str) -> Moment:
    """Hidden states before and after the last norm, two float32 a token, logits, cast table.

    And one float32, the number of tokens that count.
    """
    tokens = step.sizes.tokens
    chunk = min(step.profile.training.loss_chunk, tokens)
    return Moment(phase, "loss", {
        "activations": 2 * step.stream + 8 * tokens + SCALAR_BYTES,
        "logits": chunk * step.sizes.vocabulary * step.sizes.compute,
        "workspace": step.rounded_table_bytes(),
    })  # fmt: skip


def _backward(step: Step) -> Iterator[Moment]:
    """From the loss down to the embedding.

    `before` is what the layers that come later still hold, `gradients` what is there already.
    """
    layers = range(step.sizes.layers)
    before = sum(step.kept_bytes(layer) for layer in layers)
    gradients = step.table_gradient_bytes()
    yield _loss(step, "backward").plus({
        "activations": step.stream + before, "gradients": gradients})  # fmt: skip
    gradients += step.sizes.hidden * step.sizes.master
    layer_backward = _layer_backward(step)
    for layer in reversed(layers):
        start = step.segment_start(layer)
        if layer == step.segment_end(start):
            before -= step.kept_bytes(start)
            for moment in _recompute(step, start, layer):
                yield moment.plus({"activations": before, "gradients": gradients})
        here = before + (layer - start) * step.saved_bytes()
        there = {"activations": here, "gradients": gradients}
        yield layer_backward.at(f"layer {layer}").plus(there)
        gradients += sum(step.gradients.values())
    # A shared table has two gradients for a moment, before one is added to the other.
    gradients += step.table_gradient_bytes()
    yield Moment("backward", "embedding", {"activations": step.stream, "gradients": gradients})


def _recompute(step: Step, start: int, end: int) -> Iterator[Moment]:
    """Layers `start` to `end` run again and keep everything; the gradient of the last is there.

    A selective policy's kept tensors are there from the beginning.
    """
    kept = step.kept_by(start)
    if kept == "all":
        return
    there = [name for name in KEPT[kept] if name != "x"]
    held = sum(step.tensors[name] for name in there)
    again = [name for name in SAVED_SINCE if name not in there]
    steps = _steps_again(there)
    whole = _layer_forward(step, again, steps)
    # The last layer stops as soon as all is there: before its last product is computed.
    before_last = dict([*steps.items()][:-2])
    last = highest([_layer_forward(step, again, before_last), _last_saved(step, again)])
    for number, layer in enumerate(range(start, end + 1)):
        moment = (last if layer == end else whole).at(f"layer {layer} again")
        beside = number * step.saved_bytes() + held + step.stream
        yield replace(moment.plus({"activations": beside}), phase="backward")


def _steps_again(there: Collection[str]) -> dict[str, str]:
    """The forward steps without what is there; a step whose result is there computes nothing."""
    return {
        name: " ".join(
            tensor
            for tensor in names.split()
            if tensor not in there and (RESULTS.get(name) not in there or tensor in SAVED_SINCE)
        )
        for name, names in FORWARD.items()
    }


def _last_saved(step: Step, kept: Collection[str]) -> Moment:
    """The down projection's inputs are there again, and room for its result."""
    return Moment("backward", "down projection", alive(["y", *kept], step.tensors))


def _layer_backward(step: Step) -> Moment:
    return highest(
        Moment("backward", name, {
            **alive(tensors.split(), step.tensors),
            "gradients": sum(step.gradients[weight] for weight in weights.split())})
        for name, (tensors, weights) in BACKWARD.items()
    )  # fmt: skip


def _all_gradients(step: Step) -> int:
    profile = step.profile
    trained = linear_parameters(profile) + norm_parameters(profile) + embedding_parameters(profile)
    return trained * step.sizes.master
