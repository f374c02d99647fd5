"""Linear layers in every storage, and the embedding table.

`BitLinear` is trained: full-precision master weights, rounded to {-1, 0, 1} in each forward pass.
`PackedBitLinear` is what it becomes for inference, exactly: the same integers, the same scale.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tritter_model.config import ModelConfig
from tritter_model.initialise import fill_normal
from tritter_model.labels import EMBEDDINGS, label
from tritter_model.ops import dense
from tritter_model.ops.cross_entropy import chunked_cross_entropy
from tritter_model.ops.embedding import embed
from tritter_model.ops.expand import int4_groups
from tritter_model.ops.random_ternary import fill_packed
from tritter_model.ops.rows import QuantisedRows, quantise_rows
from tritter_model.ops.ternary import ternary_linear
from tritter_model.ops.ternary_format import pack, packed_width, unpack
from tritter_model.ops.ternary_training import ternarise, trained_ternary_linear

Rows = Tensor | QuantisedRows


class PackedBitLinear(nn.Module):
    """Ternary weights in 2 or 1.6 bits, int8 activations.

    Args:
        in_features: K.
        out_features: N.
        config: says the format and the activations' type.
        device: where the weights live.
    """

    packed: Tensor  # uint8 [N, packed_width(K)]
    scale: Tensor  # float32 [N]

    def __init__(
        self, in_features: int, out_features: int, config: ModelConfig, device: torch.device
    ) -> None:
        super().__init__()
        width = packed_width(in_features, config.weight_format)
        shape = (out_features, width)
        self.in_features = in_features
        self.dtype = getattr(torch, config.compute_dtype)
        self.register_buffer("packed", torch.empty(shape, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.empty(out_features, device=device))

    def reset(self, generator: torch.Generator) -> None:
        """Random weights of variance 1 / K, without ever holding them unpacked."""
        two_bit = self.packed.shape[1] == packed_width(self.in_features, "ternary-2bit")
        fill_packed(self.packed, generator, two_bit)
        nonzero = 1 / 2 if two_bit else 2 / 3
        self.scale.fill_((nonzero * self.in_features) ** -0.5)

    def forward(self, x: Rows) -> Tensor:
        """[T, N] of rows that are quantised here where they are not yet."""
        rows = quantise_rows(x) if isinstance(x, Tensor) else x
        return ternary_linear(rows, self.packed, self.scale, self.dtype)


class BitLinear(nn.Module):
    """A ternary layer in training: master weights, rounded in each forward pass."""

    def __init__(
        self, in_features: int, out_features: int, config: ModelConfig, device: torch.device
    ) -> None:
        super().__init__()
        self.weight = _master(out_features, in_features, config, device)

    def reset(self, generator: torch.Generator) -> None:
        """Normal weights of variance 1 / K."""
        fill_normal(self.weight, generator, self.weight.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[T, N]; gradients pass straight through the rounding."""
        return trained_ternary_linear(x, self.weight)

    def packed_for(self, config: ModelConfig) -> PackedBitLinear:
        """This layer for inference: equal outputs, bit for bit."""
        rows, columns = self.weight.shape
        layer = PackedBitLinear(columns, rows, config, self.weight.device)
        with torch.no_grad():
            two_bit, scale = ternarise(self.weight)
            codes = unpack(two_bit, columns)
            layer.packed.copy_(pack(codes, config.weight_format))
            layer.scale.copy_(scale)
        return layer


class Linear(nn.Module):
    """A layer in a floating-point type; trainable where it holds master weights."""

    def __init__(
        self, in_features: int, out_features: int, weight: nn.Parameter | None = None,
        *, dtype: torch.dtype = torch.bfloat16, device: torch.device | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if weight is None:
            stored = torch.empty(out_features, in_features, dtype=dtype, device=device)
            weight = nn.Parameter(stored, requires_grad=False)
        self.weight = weight

    def reset(self, generator: torch.Generator) -> None:
        """Normal weights of variance 1 / K."""
        fill_normal(self.weight, generator, self.weight.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[T, N] in the type of x."""
        return dense.trained_linear(x, self.weight)


class Int8Linear(nn.Module):
    """int8 weights, a scale for each output."""

    codes: Tensor  # int8 [N, K]
    scale: Tensor  # float32 [N]

    def __init__(self, in_features: int, out_features: int, device: torch.device) -> None:
        super().__init__()
        shape = (out_features, in_features)
        self.register_buffer("codes", torch.empty(shape, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.empty(out_features, device=device))

    def reset(self, generator: torch.Generator) -> None:
        """Uniform weights of variance 1 / K."""
        self.codes.random_(-127, 128, generator=generator)
        self.scale.fill_((3 / self.codes.shape[1]) ** 0.5 / 127)

    def forward(self, x: Tensor) -> Tensor:
        """[T, N] in the type of x."""
        return dense.quantised_linear(x, self.codes, self.scale)


class Int4Linear(nn.Module):
    """int4 weights, a scale for each 128 inputs of an output."""

    packed: Tensor  # uint8 [N, ceil(K / 2)]
    scale: Tensor  # float16 [N, ceil(K / 128)]

    def __init__(self, in_features: int, out_features: int, device: torch.device) -> None:
        super().__init__()
        shape = (out_features, -(-in_features // 2))
        groups = (out_features, int4_groups(in_features))
        self.in_features = in_features
        self.register_buffer("packed", torch.empty(shape, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.empty(groups, dtype=torch.float16, device=device))

    def reset(self, generator: torch.Generator) -> None:
        """Uniform weights of variance 1 / K."""
        self.packed.random_(0, 256, generator=generator)
        self.scale.fill_((3 / self.in_features) ** 0.5 / 8)

    def forward(self, x: Tensor) -> Tensor:
        """[T, N] in the type of x."""
        return dense.quantised_linear(x, self.packed, self.scale)


def make_linear(
    in_features: int, out_features: int, config: ModelConfig, device: torch.device, trainable: bool
) -> nn.Module:
    """The layer that the configuration's weight format asks for.

    Raises:
        ValueError: int8 or int4 weights are to be trained.
    """
    form = config.weight_format
    if trainable and form in ("int8", "int4"):
        raise ValueError(f"{form} weights cannot be trained; train a ternary or float format")
    if config.is_ternary:
        kind = BitLinear if trainable else PackedBitLinear
        return kind(in_features, out_features, config, device)
    if form in ("int8", "int4"):
        packed = Int8Linear if form == "int8" else Int4Linear
        return packed(in_features, out_features, device)
    if trainable:
        return Linear(in_features, out_features, _master(out_features, in_features, config, device))
    return Linear(in_features, out_features, dtype=getattr(torch, form), device=device)


def _master(rows: int, columns: int, config: ModelConfig, device: torch.device) -> nn.Parameter:
    dtype = getattr(torch, config.master_dtype)
    return nn.Parameter(torch.empty(rows, columns, dtype=dtype, device=device))


class Table(nn.Module):
    """An embedding table or output projection: a float type, or int8 with a scale for each row.

    Args:
        config: vocabulary, width, and types.
        device: where it lives.
        trainable: whether it holds master weights.
    """

    scale: Tensor | None  # float32 [V]

    def __init__(self, config: ModelConfig, device: torch.device, trainable: bool) -> None:
        super().__init__()
        dtype = getattr(torch, config.master_dtype if trainable else config.embedding_dtype)
        shape = (config.vocab_size, config.hidden_size)
        with label(EMBEDDINGS):
            weight = torch.empty(shape, dtype=dtype, device=device)
            scale = torch.empty(shape[0], device=device) if dtype == torch.int8 else None
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.register_buffer("scale", scale)

    def reset(self, generator: torch.Generator) -> None:
        """Normal or uniform rows of variance 1 / H."""
        if self.scale is None:
            fill_normal(self.weight, generator, self.weight.shape[1] ** -0.5)
        else:
            self.weight.data.random_(-127, 128, generator=generator)
            self.scale.fill_((3 / self.weight.shape[1]) ** 0.5 / 127)

    def store(self, rows_VH: Tensor) -> None:
        """Take a trained table's rows, in this table's type."""
        if self.scale is None:
            self.weight.data.copy_(rows_VH)
        else:
            codes, scale = dense.quantise_int8(rows_VH.data)
            self.weight.data.copy_(codes)
            self.scale.copy_(scale)

    def embed(
        self, ids_T: Tensor, prefix: Tensor | None, dtype: torch.dtype, alias: Tensor | None = None
    ) -> Tensor:
        """Rows for tokens, [T, H] in `dtype`; see `ops.embedding.embed`.

        An alias of the weight takes its place where the table is shared in training.
        """
        weight = self.weight if alias is None else alias
        rows: Tensor = self(_rows, ids_T, weight, self.scale, prefix, dtype)
        return rows

    def project(self, x_TH: Tensor) -> Tensor:
        """Logits [T, V]."""
        logits: Tensor = self(dense.project, x_TH, self.weight, self.scale)
        return logits

    def loss(
        self, hidden_TH: Tensor, targets_T: Tensor, chunk: int, alias: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy as the output projection; see `ops.cross_entropy`.

        An alias of the weight takes its place where the table is shared in training.
        """
        weight = self.weight if alias is None else alias
        loss: Tensor = self(chunked_cross_entropy, hidden_TH, weight, targets_T, chunk)
        return loss

    def forward(self, use: Callable[..., Tensor], *args: object) -> Tensor:
        """Each of the uses above, so that hooks on modules see the table run."""
        return use(*args)


def _rows(
    ids_T: Tensor, table_VH: Tensor, scale_V: Tensor | None, prefix: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    out = table_VH.new_empty((ids_T.shape[0], table_VH.shape[1]), dtype=dtype)
    return embed(ids_T, table_VH, scale_V, prefix, out)
