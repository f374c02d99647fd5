"""Attention that cuDNN takes asks for what a GPU was asked for, on `meta` and in a plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tritter_mem import torch_release
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.shape_tensors import BOOL, FLOAT, HALF, Node, Operations
from tritter_mem.simulation.cuda.attention_backends import Attention, choose
from tritter_mem.simulation.cuda.dispatch import as_on_cuda
from tritter_mem.simulation.cuda.libraries import Libraries
from tritter_mem.simulation.events import Event
from tritter_mem.simulation.flops import FlopCounter
from tritter_mem.simulation.recorder import Recorder

H200 = find_gpu("h200")
HOPPER, BLACKWELL, AMPERE = (9, 0), (10, 0), (8, 0)
MEASURED = Path(__file__).parents[2] / "models/cudnn_attention.json"
MEASURED_CALLS: list[dict[str, Any]] = json.loads(MEASURED.read_text())["calls"]
CALLS = [call for call in MEASURED_CALLS if call["backend"] == "cudnn"]


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16, trains: bool = False) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=trains)


def signed(events: list[Event]) -> list[int]:
    return [event.bytes if event.kind == "alloc" else -event.bytes for event in events]


@contextmanager
def recorded() -> Iterator[Recorder]:
    libraries = Libraries(H200, lambda: torch._C._current_graph_task_id() != -1)
    with as_on_cuda(H200.compute_capability), Recorder("meta", libraries) as recorder:
        yield recorder


def inputs(call: dict[str, Any]) -> list[Tensor]:
    batch, trains = call["batch"], "grad" in call
    return [
        tensor(batch, call[count], call[tokens], call[width], trains=trains)
        for count, tokens, width in (
            ("heads", "queries", "width"), ("groups", "keys", "width"),
            ("groups", "keys", "value_width"),
        )
    ]  # fmt: skip


def mask_of(call: dict[str, Any]) -> Tensor | None:
    dtype = {"bool": torch.bool, "float": torch.bfloat16}.get(call.get("mask", ""))
    return dtype and tensor(call["batch"], 1, call["queries"], call["keys"], dtype=dtype)


def simulated(call: dict[str, Any]) -> dict[str, list[int]]:
    """Events of a call, and of its gradients, once libraries hold what they keep."""
    query, key, value = inputs(call)
    mask = mask_of(call)
    with recorded() as recorder:
        for held in (query, key, value, *([] if mask is None else [mask])):
            recorder.adopt(held, "activations")
        start = len(recorder.log)
        out = functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=call.get("causal", False),
            enable_gqa=call["heads"] != call["groups"],
        )  # fmt: skip
        found = {"forward": signed(list(recorder.log)[start:])}
        if "grad" in call:
            grad = torch.empty_like(out)
            start = len(recorder.log)
            grads = torch.autograd.grad(out, (query, key, value), grad)
            found["backward"] = signed(list(recorder.log)[start:])
            del grads
    return found


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_simulated_call_asks_for_what_a_gpu_was_asked_for(call: dict[str, Any]) -> None:
    found = simulated(call)
    assert {name: call[name] for name in found} == found


def planned(call: dict[str, Any]) -> dict[str, list[int]]:
    """The same of a plan."""
    ops = Operations(H200, H200.cublas_workspace_bytes)
    ops.grad = "grad" in call
    query, key, value = (ops.weight(tuple(x.shape), HALF, trains=ops.grad) for x in inputs(call))
    made = mask_of(call)
    size = BOOL if call.get("mask") == "bool" else HALF
    mask = None if made is None else ops.new(tuple(made.shape), size)
    start = len(ops.requests.events)
    out = ops.attention(query, key, value, mask, call.get("causal", False))
    found = {"forward": asked(ops, start)}
    if isinstance(out.node, Node):
        grad = ops.new(out.shape, HALF)
        start = len(ops.requests.events)
        grads = ops._call(out.node, [grad])
        found["backward"] = asked(ops, start)
        del grads
    return found


def asked(ops: Operations, start: int) -> list[int]:
    sizes = ops.requests.sizes
    return [sizes[n] if n >= 0 else -sizes[~n] for n in ops.requests.events[start:]]


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_planned_call_asks_for_what_a_gpu_was_asked_for(call: dict[str, Any]) -> None:
    found = planned(call)
    assert {name: call[name] for name in found} == found


def heads(count: int = 8, tokens: int = 64, width: int = 64, **options: Any) -> Tensor:
    return tensor(2, count, tokens, width, **options)


USUAL = Attention(heads(), heads(), heads())
MASK = tensor(2, 1, 64, 64, dtype=torch.bool)


def of_width(keys: int, values: int) -> Attention:
    return Attention(heads(width=keys), heads(width=keys), heads(width=values))


@pytest.mark.parametrize(
    ("call", "backend"),
    [
        (USUAL, "cudnn"),
        (replace(USUAL, query=heads(tokens=1)), "cudnn"),
        (replace(USUAL, causal=True, query=heads(tokens=32)), "cudnn"),
        (replace(USUAL, mask=MASK), "cudnn"),
        (replace(USUAL, mask=tensor(1, 64)), "cudnn"),
        (replace(USUAL, mask=tensor(8, 64, 64)), "efficient"),  # neither two dimensions nor four
        (replace(USUAL, mask=tensor(64, 64, trains=True)), "efficient"),
        (replace(USUAL, mask=tensor(64, 64).t()), "efficient"),
        (replace(USUAL, key=heads(tokens=1), value=heads(tokens=1)), "flash"),
        (replace(USUAL, key=heads(2), value=heads(2), grouped=True), "cudnn"),
        (replace(USUAL, key=heads(2), value=heads(2)), "math"),
        (replace(USUAL, dropout=0.125), "cudnn"),
        (replace(USUAL, dropout=0.1), "flash"),
        (replace(USUAL, dropout=0.125, query=heads(tokens=1)), "flash"),
        (Attention(*(heads(dtype=torch.float32) for _ in range(3))), "efficient"),
        (of_width(36, 36), "flash"),
        (of_width(256, 256), "cudnn"),
        (of_width(264, 264), "efficient"),
        (of_width(64, 32), "cudnn"),
    ],
)  # fmt: skip
def test_which_calls_it_takes(call: Attention, backend: str) -> None:
    assert choose(call, HOPPER) == backend


@pytest.mark.parametrize(
    ("widths", "on_hopper", "on_blackwell"),
    [
        ((128, 128), "cudnn", "cudnn"),
        ((136, 136), "cudnn", "flash"),
        ((192, 128), "cudnn", "cudnn"),  # as DeepSeek's
        ((128, 192), "cudnn", "efficient"),
    ],
)
def test_widths_that_each_card_takes(
    widths: tuple[int, int], on_hopper: str, on_blackwell: str
) -> None:
    call = of_width(*widths)
    assert choose(call, HOPPER) == on_hopper
    assert {choose(call, (10, minor)) for minor in (0, 3)} == {on_blackwell}


@pytest.mark.parametrize("capability", [(7, 5), AMPERE, (8, 9), (11, 0), (12, 0)])
def test_other_cards_do_not_prefer_it(capability: tuple[int, int]) -> None:
    assert choose(USUAL, capability) == ("flash" if capability >= AMPERE else "math")


def test_amd_s_cards_have_no_cudnn_though_their_numbers_are_alike() -> None:
    assert choose(USUAL, (9, 4), "amd") == "flash"
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        assert choose(USUAL, (9, 4), "amd") == "math"
    ops = Operations(find_gpu("mi300x"), 0)
    out = ops.attention(*(ops.new((2, 8, 64, 64), HALF) for _ in range(3)), None, False)
    assert 2 * 8 * 64 * FLOAT in ops.requests.sizes  # flash keeps the sums of rows always
    del out


def test_releases_before_it_take_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_release, "release", lambda: (2, 10))
    assert choose(USUAL, HOPPER) == "flash"


@pytest.mark.parametrize(("value", "backend"), [("1", "flash"), ("0", "cudnn")])
def test_a_variable_of_pytorch_puts_it_last(
    value: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", value)
    assert choose(USUAL, HOPPER) == backend


def test_backends_that_the_code_names_are_heeded() -> None:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert choose(USUAL, HOPPER) == "flash"
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        assert (choose(USUAL, HOPPER), choose(USUAL, AMPERE)) == ("cudnn", "flash")
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        assert choose(USUAL, AMPERE) == "cudnn"
        assert choose(of_width(256, 256), AMPERE) == "math"


@pytest.mark.parametrize(("warn_only", "backend"), [(False, "flash"), (True, "cudnn")])
def test_deterministic_algorithms_rule_it_out(warn_only: bool, backend: str) -> None:
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        assert choose(USUAL, HOPPER) == backend
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("value_width", [64, 32])
def test_the_output_lies_as_the_queries_do(value_width: int) -> None:
    query = tensor(2, 64, 8, 64).transpose(1, 2)
    with as_on_cuda(HOPPER):
        out = functional.scaled_dot_product_attention(query, heads(), heads(width=value_width))
    assert out.shape == (2, 8, 64, value_width)
    assert out.transpose(1, 2).is_contiguous()
    ops = Operations(H200, 0)
    laid = ops.transpose(ops.new((2, 64, 8, 64), HALF), 1, 2)
    key, value = ops.new((2, 8, 64, 64), HALF), ops.new((2, 8, 64, value_width), HALF)
    assert ops.attention(laid, key, value, None, False).strides == out.stride()


@pytest.mark.parametrize("trains", list(product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["cudnn", "efficient"])
def test_what_gradients_need_is_kept_where_one_of_the_inputs_has_one(
    dtype: torch.dtype, trains: tuple[bool, ...]
) -> None:
    made = [heads(dtype=dtype, trains=one) for one in trains]
    with recorded() as recorder:
        for held in made:
            recorder.adopt(held, "activations")
        start = len(recorder.log)
        out = functional.scaled_dot_product_attention(*made)
        simulated = signed(list(recorder.log)[start:])
    ops = Operations(H200, H200.cublas_workspace_bytes)
    ops.grad = True
    inputs = [
        ops.weight(tuple(x.shape), dtype.itemsize, trains=one)
        for x, one in zip(made, trains, strict=True)
    ]
    start = len(ops.requests.events)
    planned = ops.attention(*inputs, None, False)
    assert asked(ops, start) == simulated
    del out, planned


def test_a_gradient_whose_channels_repeat_is_copied_beside_the_workspace() -> None:
    query, key, value = (heads(trains=True) for _ in range(3))
    with recorded() as recorder:
        out = functional.scaled_dot_product_attention(query, key, value)
        start = len(recorder.log)
        grads = torch.autograd.grad(out.sum(), (query, key, value))
        events = signed(list(recorder.log)[start:])
    nbytes, workspace = 2 * 8 * 64 * 64 * 2, 2 * 8 * 64 * 65 * 4 + 256
    ours = [nbytes] * 4 + [workspace, -workspace, -nbytes]
    assert str(ours)[1:-1] in str(events)
    del grads


def test_a_mask_as_numbers_is_kept_for_gradients() -> None:
    query, key, value = (heads(trains=True) for _ in range(3))
    mask = tensor(1, 1, 64, 64, dtype=torch.bool).expand(2, 1, 64, 64)
    with recorded() as recorder:
        out = functional.scaled_dot_product_attention(query, key, value, mask)
        events = signed(list(recorder.log))
        grads = torch.autograd.grad(out, (query, key, value), torch.empty_like(out))
        later = signed(list(recorder.log)[len(events) :])
    numbers = 2 * 64 * 64 * 2
    assert numbers in events
    assert -numbers not in events
    assert -numbers in later
    del grads


def test_its_products_are_counted() -> None:
    with as_on_cuda(HOPPER), FlopCounter() as counted:
        functional.scaled_dot_product_attention(heads(), heads(), heads())
    assert counted.by_phase == {"": 2 * 2 * 2 * 8 * 64 * 64 * 64}
