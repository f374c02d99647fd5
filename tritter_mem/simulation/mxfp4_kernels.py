"""Shapes of what the Triton kernels for MXFP4 allocate, for transformers' own code to call.

transformers builds `Mxfp4GptOssMLP` and runs it. The objects here stand for the modules of
`kernels-community/gpt-oss-triton-kernels`: each function makes the tensors that the host code of
the kernel of that name makes, in its order. `models/mxfp4_experts.py` names the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tritter_mem.config.cards import GpuCard
from tritter_mem.errors import SimulationError
from tritter_mem.models.mxfp4_experts import Launch, launch, not_in_blocks, swizzles

PROJECTIONS = ("gate_up_proj", "down_proj")


class PackedTensor:
    """`tensor.Tensor`: what a kernel takes for a weight.

    Attributes:
        data: its bytes.
        shape: of its numbers; transformers sets it.
    """

    def __init__(self, data: Tensor) -> None:
        self.data = data
        self.shape = data.shape


class Routed(NamedTuple):
    """`routing.RoutingData`.

    Attributes:
        gate_scal: weights of the rows of all experts.
        experts: how many there are. `chosen`: of a token.
        tables: the histogram, and where blocks of rows begin.
    """

    gate_scal: Tensor
    experts: int
    chosen: int
    tables: tuple[Tensor, ...]


class TritonKernels:
    """The package on a card.

    Args:
        card: decides how weights lie, and how products are split.
    """

    def __init__(self, card: GpuCard) -> None:
        self._card = card
        held = SimpleNamespace  # whatever transformers gives them
        self.matmul_ogs = SimpleNamespace(
            matmul_ogs=self._matmul, PrecisionConfig=held, FlexCtx=held, InFlexData=held,
            FnSpecs=lambda *values: values, FusedActivation=lambda *values: values,
        )  # fmt: skip
        self.routing = SimpleNamespace(routing=self._routing)
        self.swiglu = SimpleNamespace(swiglu_fn=None)
        self.tensor = SimpleNamespace(
            FP4="fp4",
            wrap_torch_tensor=lambda data, dtype=None: PackedTensor(data),
            convert_layout=lambda packed, layout, **options: PackedTensor(layout(packed.data)),
        )
        layout = SimpleNamespace(
            StridedLayout=_as_it_is, make_default_matmul_mxfp4_w_layout=self._value_layout
        )
        self.tensor_details = SimpleNamespace(layout=layout)

    def _value_layout(self, mx_axis: int) -> tuple[Any, dict[str, int]]:
        return (_swizzled if swizzles(self._card) else _as_it_is), {"mx_axis": mx_axis}

    def _routing(self, logits: Tensor, chosen: int) -> tuple[Routed, tuple[Tensor, ...], Any]:
        """`routing` of logits [T, E]: what the products take, and gather and scatter indices.

        `topk` makes a bit for each token and expert; `sort_tokens` counts and sorts.
        """
        best = _top_k(logits, chosen)
        histogram = best[-1]
        (tokens, experts), numbers = logits.shape, _integers(logits)
        partials = numbers(-(-experts // 32) * 32, -(-tokens // 128) * 4)
        offsets = numbers(experts)
        indices = numbers(2 * tokens * chosen)
        weights = logits.new_empty(tokens * chosen)
        rows = tokens * chosen
        starts = numbers(5, -(-(experts + 1) // 512) * 512)
        most = rows if rows <= experts else experts - 1 - (experts - rows - 1) // 16
        block_map = numbers(4, -(-most // 512) * 512)
        del partials, offsets, best
        indexed = indices[:rows], indices[rows:]
        routed = Routed(weights, experts, chosen, (histogram, starts, block_map))
        return routed, indexed, indexed[::-1]

    def _matmul(
        self, x: Tensor, weight: PackedTensor, bias: Tensor, routed: Routed, **given: Any
    ) -> Tensor:
        """`matmul_ogs`: rows, which it gathers or scatters, with the weights of their experts."""
        inputs, outputs = weight.shape[-2:]
        if x.shape[-1] != inputs:
            raise ValueError(f"rows of {x.shape[-1]} numbers, and a weight for {inputs}")
        rows = given["gather_indx"][0].shape[0] if "gather_indx" in given else x.shape[0]
        how = launch(self._card, rows, outputs, inputs, routed.experts)
        if "scatter_indx" in given:
            return _scattered(x, how, rows, outputs, routed.chosen)
        _, _, reduced = given["fused_activation"]
        out = x.new_empty((1, rows, outputs // reduced))
        if how.parts > 1:
            x.new_empty((how.parts, 1, rows, outputs), dtype=torch.float32)
        return out.view(rows, outputs // reduced)


def _scattered(x: Tensor, how: Launch, rows: int, outputs: int, chosen: int) -> Tensor:
    """A token's rows added up, in front of those of its experts where the product scatters."""
    tokens, several = rows // chosen, chosen > 1
    if how.fused and several:
        out = x.new_empty((1, rows + tokens, outputs))
        places = x.new_zeros(rows, dtype=torch.int32)
        ends = x.new_zeros(tokens + rows + 1, dtype=torch.int32)
        del places, ends
        return out[:, :tokens].view(tokens, outputs)
    out = x.new_empty((1, tokens, outputs))
    if several or how.parts > 1:
        dtype = torch.float32 if how.parts > 1 else x.dtype
        x.new_empty((how.parts, 1, rows, outputs), dtype=dtype)
    return out.view(tokens, outputs)


def _top_k(logits: Tensor, chosen: int) -> tuple[Tensor, ...]:
    """`topk`: values, experts, bits, and zeros to count in."""
    (tokens, experts), numbers = logits.shape, _integers(logits)
    values = logits.new_empty((tokens, chosen))
    places = logits.new_empty((tokens, chosen), dtype=torch.int16)
    bits = numbers(-(-experts // 32), -(-tokens // 32) * 32)
    return values, places, bits, numbers(-(-experts // 128) * 128)


def _integers(like: Tensor) -> Any:
    return lambda *shape: like.new_empty(shape, dtype=torch.int32)


def _as_it_is(data: Tensor) -> Tensor:
    """`StridedLayout`."""
    return data


def _swizzled(data: Tensor) -> Tensor:
    """`HopperMXValueLayout`, of bytes [E, K / 2, N]: padded to 32 bytes and 16 outputs."""
    experts, columns, rows = data.shape
    rows, columns = -(-rows // 16) * 16, -(-columns // 32) * 32
    padded = data.new_empty((experts, rows, columns))
    moved = torch.empty_like(padded)
    del padded
    return _packed(moved.view(experts, rows // 4, columns, 4)).mT


def _packed(codes: Tensor) -> Tensor:
    """`_pack_bits`: words of four codes in each byte's place; in and out as many bytes."""
    first, second, third = (_word(codes[..., place]) for place in range(3))
    fourth = _word(codes[..., 3])
    words = first | (second >> 3) | (third >> 6) | fourth
    return words.view(torch.uint8)


def _word(codes: Tensor) -> Tensor:
    return _spread(codes) | (_spread(codes >> 4) << 16)


def _spread(x: Tensor) -> Tensor:
    x = x.to(torch.int32)
    return ((x & 8) << 12) | ((x & 7) << 6)


@contextmanager
def kernels_loaded(card: GpuCard) -> Iterator[TritonKernels]:
    """Let transformers find these kernels, as `replace_with_mxfp4_linear` leaves them."""
    from transformers.integrations import hub_kernels, mxfp4

    kernels = TritonKernels(card)
    with (
        patch.object(hub_kernels, "get_kernel", lambda *name, **version: kernels),
        patch.object(mxfp4, "triton_kernels_hub", kernels, create=True),
    ):
        yield kernels


def pack_experts(model: nn.Module, skipped: list[str], card: GpuCard) -> None:
    """Put in the experts that transformers keeps in MXFP4, as they are when they are loaded.

    Args:
        model: as built from the configuration, not quantised.
        skipped: modules that stay as they are.
        card: decides how their weights lie.

    Raises:
        SimulationError: a weight is not in whole blocks.
    """
    from transformers.integrations import mxfp4
    from transformers.utils.quantization_config import Mxfp4Config

    with kernels_loaded(card) as kernels:
        config = Mxfp4Config()
        mxfp4.replace_with_mxfp4_linear(
            model, quantization_config=config, modules_to_not_convert=skipped
        )
        for module in model.modules():
            if isinstance(module, mxfp4.Mxfp4GptOssExperts):
                for name in PROJECTIONS:
                    _load(module, name, kernels)


def load_last(model: nn.Module) -> list[Tensor]:
    """The codes of the last weight of experts again, as they are loaded beside all others.

    Those that are there go first, and the cache is emptied behind:
    `_process_model_after_weight_loading`.
    """
    from transformers.integrations import mxfp4

    found = [m for m in model.modules() if isinstance(m, mxfp4.Mxfp4GptOssExperts)]
    if not found:
        return []
    last, name = found[-1], PROJECTIONS[0]  # it comes behind `down_proj` in a checkpoint
    for part in (name, f"{name}_blocks"):
        setattr(last, part, None)
    kernels: Any = mxfp4
    _load(last, name, kernels.triton_kernels_hub, getattr(last, f"{name}_scales").mT)
    torch.cuda.empty_cache()
    return [getattr(last, f"{name}_blocks")]


def _load(module: Any, name: str, kernels: TritonKernels, scales: Tensor | None = None) -> None:
    """A weight as a checkpoint has it, swizzled by transformers; its bytes become buffers."""
    from transformers.integrations import mxfp4

    swizzle: Any = mxfp4.swizzle_mxfp4_convertops
    outputs, inputs = 2 * module.intermediate_size, module.hidden_size
    if name != PROJECTIONS[0]:
        outputs, inputs = module.hidden_size, module.intermediate_size
    if found := not_in_blocks(inputs):
        raise SimulationError(found)
    stored = module.num_experts, outputs, inputs // 32, 16
    blocks = torch.empty(stored, dtype=torch.uint8, device="meta")
    if scales is None:
        scales = torch.empty(blocks.shape[:3], dtype=torch.uint8, device="meta")
    swizzle(blocks, scales, module, name, "meta", kernels)
    scale = getattr(module, f"{name}_precision_config").weight_scale
    module.register_buffer(f"{name}_blocks", getattr(module, name).data)
    module.register_buffer(f"{name}_scales", scale.data)
