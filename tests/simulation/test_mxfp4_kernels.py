"""transformers' own experts in MXFP4 run over stand-ins for the Triton kernels."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")
import torch
from transformers.integrations import hub_kernels, mxfp4

from tests.planner.test_mxfp4 import SIZES, TINY
from tests.planner.test_transformers_engine import a_run
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import SimulationError
from tritter_mem.models.mxfp4_experts import held_bytes
from tritter_mem.simulation.mxfp4_kernels import TritonKernels
from tritter_mem.simulation.transformers_model import build_model, simulate_transformers


@pytest.mark.parametrize("gpu", ["a100-80gb", "h100", "b200"])
def test_experts_are_transformers_own_and_hold_swizzled_bytes(gpu: str) -> None:
    card = find_gpu(gpu)
    model = build_model(a_run(TINY | SIZES["padded on Hopper"]), card)
    experts = model.model.layers[1].mlp.experts
    assert type(model.model.layers[1].mlp).__name__ == "Mxfp4GptOssMLP"
    for name, shape in (("gate_up_proj", (192, 288)), ("down_proj", (288, 96))):
        held = [getattr(experts, f"{name}_{part}").nbytes for part in ("blocks", "scales")]
        assert held == [4 * size for size in held_bytes(card, *shape)]
        assert getattr(experts, f"{name}_bias").dtype == torch.float32
        assert name not in experts._parameters


def test_transformers_is_left_as_it_was() -> None:
    before = hub_kernels.get_kernel, getattr(mxfp4, "triton_kernels_hub", None)
    simulate_transformers(a_run(TINY), find_gpu("h100"))
    assert before == (hub_kernels.get_kernel, getattr(mxfp4, "triton_kernels_hub", None))


def a_product(kernels: TritonKernels, rows: int, **given: Any) -> torch.Tensor:
    x = torch.empty((rows, 64), dtype=torch.bfloat16, device="meta")
    packed = kernels.tensor.wrap_torch_tensor(torch.empty((4, 32, 96), device="meta"))
    packed.shape = torch.Size([4, 64, 96])
    routed, gather, scatter = kernels.routing.routing(x[:, :4], 2)
    indices = {"gather_indx": gather} if given else {"scatter_indx": scatter}
    bias = torch.empty((4, 96), device="meta")
    return kernels.matmul_ogs.matmul_ogs(x, packed, bias, routed, **indices, **given)


def test_products_have_the_shapes_of_the_kernels() -> None:
    kernels = TritonKernels(find_gpu("h100"))
    gated = a_product(kernels, 10, fused_activation=("swiglu", (1.7, 7.0), 2))
    assert gated.shape == (20, 48)  # two experts a token, and half of gate and up
    assert a_product(kernels, 10).shape == (5, 96)
    assert a_product(kernels, 10).untyped_storage().nbytes() == 15 * 96 * 2  # those of experts too


def test_weights_that_are_not_in_blocks_are_refused() -> None:
    run = a_run(TINY | {"intermediate_size": 496})
    with pytest.raises(SimulationError, match="blocks of 32 inputs; found 496"):
        simulate_transformers(run, find_gpu("h100"))
