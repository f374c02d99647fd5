"""Attention on meta takes the kernel that a CUDA card takes."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tritter_mem import torch_release
from tritter_mem.simulation.cuda.attention_backends import Attention, choose
from tritter_mem.simulation.cuda.dispatch import as_on_cuda
from tritter_mem.simulation.events import EventLog
from tritter_mem.simulation.recorder import Recorder

AMPERE = (8, 0)
B, H, T, D = 2, 8, 256, 64


def heads(
    count: int = H, tokens: int = T, width: int = D, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    return torch.ones(B, count, tokens, width, dtype=dtype, device="meta", requires_grad=True)


USUAL = Attention(heads(), heads(), heads(), causal=True)
SINGLE = Attention(*(heads(dtype=torch.float32) for _ in range(3)))


@pytest.mark.parametrize(
    ("call", "capability", "backend"),
    [
        (USUAL, AMPERE, "flash"),
        (USUAL, (12, 0), "flash"),
        (USUAL, (7, 5), "math"),  # bfloat16 needs 8.0
        (Attention(*(heads(dtype=torch.float16) for _ in range(3))), (7, 5), "efficient"),
        (SINGLE, AMPERE, "efficient"),
        (replace(USUAL, mask=torch.ones(T, T, device="meta")), AMPERE, "efficient"),
        (replace(USUAL, query=heads(tokens=1)), AMPERE, "efficient"),
        (replace(USUAL, query=heads(tokens=1), causal=False), AMPERE, "flash"),
        (replace(USUAL, key=heads(2), value=heads(2), grouped=True), AMPERE, "flash"),
        (replace(SINGLE, key=heads(2, dtype=torch.float32)), AMPERE, "math"),
        (replace(USUAL, value=heads(width=32)), AMPERE, "efficient"),
        (Attention(*(heads(width=320) for _ in range(3))), AMPERE, "efficient"),
        (Attention(*(heads(width=36) for _ in range(3))), AMPERE, "flash"),
        (Attention(*(heads(width=30, dtype=torch.float32) for _ in range(3))), AMPERE, "math"),
        (Attention(*(heads().double() for _ in range(3))), AMPERE, "math"),
        (Attention(*(heads().transpose(2, 3) for _ in range(3))), AMPERE, "math"),
    ],
)
def test_choice(call: Attention, capability: tuple[int, int], backend: str) -> None:
    assert choose(call, capability) == backend


@pytest.mark.parametrize(("release", "backend"), [((2, 13), "math"), ((2, 14), "efficient")])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_heads_go_to_the_efficient_kernel_from_2_14_on(
    release: torch_release.Release, backend: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where flash does not take them; as the CUDA builds of 2.13, 2.14 and 2.15 chose."""
    monkeypatch.setattr(torch_release, "release", lambda: release)
    dtype = torch.bfloat16 if masked else torch.float32
    mask = torch.ones(T, T, device="meta", dtype=dtype) if masked else None
    key, value = heads(2, dtype=dtype), heads(2, dtype=dtype)
    call = Attention(heads(dtype=dtype), key, value, mask=mask, grouped=True)
    assert choose(call, AMPERE) == backend
    assert choose(replace(call, grouped=False), AMPERE) == "math"
    assert choose(replace(call, key=heads(3, dtype=dtype)), AMPERE) == "math"


def test_backends_that_the_code_names_are_heeded() -> None:
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        assert choose(USUAL, AMPERE) == "efficient"
    with sdpa_kernel(SDPBackend.MATH):
        assert choose(USUAL, AMPERE) == "math"


def attend(*inputs: Tensor, **options: object) -> EventLog:
    """Forward and backward of one call, recorded."""
    with as_on_cuda(AMPERE), Recorder("meta") as recorder:
        out = functional.scaled_dot_product_attention(*inputs, **options)
        out.backward(torch.ones_like(out))
    for tensor in inputs:
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
    return recorder.log


def made(log: EventLog) -> list[tuple[str, int]]:
    return [(event.operator, event.bytes) for event in log if event.kind == "alloc"]


@pytest.mark.parametrize("groups", [H, 2])
def test_flash_saves_output_and_sums_and_no_scores(groups: int) -> None:
    log = made(attend(heads(), heads(groups), heads(groups), is_causal=True, enable_gqa=True))
    forward = [size for name, size in log if name.endswith("flash_attention.default")]
    assert forward[:2] == [B * H * T * D * 2, B * H * T * 4]
    backward = [size for name, size in log if name.endswith("flash_attention_backward.default")]
    assert backward == [B * count * T * D * 2 for count in (H, groups, groups)]
    assert max(size for _, size in log) < B * H * T * T * 2


def test_flash_pads_odd_widths_and_gives_them_back() -> None:
    log = made(attend(*(heads(width=36) for _ in range(3))))
    assert [size for name, size in log if "pad" in name][:3] == [B * H * T * 40 * 2] * 3


def test_memory_efficient_makes_numbers_of_a_mask_of_booleans() -> None:
    mask = torch.ones(T, T, dtype=torch.bool, device="meta")
    with as_on_cuda(AMPERE), Recorder("meta") as recorder:
        functional.scaled_dot_product_attention(heads(), heads(), heads(), attn_mask=mask)
    names = [name for name, _ in made(recorder.log)]
    assert "aten._scaled_dot_product_efficient_attention.default" in names
    assert ("aten.where.self", T * T * 2) in made(recorder.log)


@pytest.mark.parametrize(("keys", "padded"), [(96, False), (100, True)])
def test_memory_efficient_pads_a_mask_to_strides_of_8(keys: int, padded: bool) -> None:
    inputs = [heads(tokens=tokens) for tokens in (T, keys, keys)]
    log = made(attend(*inputs, attn_mask=torch.ones(T, keys, dtype=torch.bfloat16, device="meta")))
    rows = [size for name, size in log if name == "aten.constant_pad_nd.default"]
    assert rows == ([T * 104 * 2] if padded else [])


def test_math_keeps_its_scores() -> None:
    inputs = [heads(dtype=torch.float32, count=count) for count in (H, 2, 2)]
    log = made(attend(*inputs, enable_gqa=True))
    assert max(size for _, size in log) == B * H * T * T * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_math_is_that_of_pytorch_but_for_a_mask_added_in_place(
    dtype: torch.dtype, masked: bool
) -> None:
    query, key, value = (heads(count=count, dtype=dtype) for count in (H, 2, 2))
    mask = torch.ones(T, T, dtype=torch.bool, device="meta").tril() if masked else None

    def run() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            out = functional.scaled_dot_product_attention(
                query, key, value, mask, is_causal=not masked, enable_gqa=True
            )
        out.sum().backward()

    with Recorder("meta") as plain:
        run()
    with as_on_cuda(AMPERE), Recorder("meta") as recorder:
        run()
    usual, on_cuda = (Counter(size for _, size in made(log)) for log in (plain.log, recorder.log))
    usual.subtract({B * H * T * T * 4: 1})
    assert on_cuda == usual


def test_inside_of_modules_and_in_inference_mode() -> None:
    attention = nn.MultiheadAttention(D * H, H, device="meta", dtype=torch.bfloat16).eval()
    x = torch.ones(T, B, D * H, device="meta", dtype=torch.bfloat16)
    for mode in (torch.no_grad, torch.inference_mode):
        with as_on_cuda(AMPERE), mode(), Recorder("meta") as recorder:
            attention(x, x, x, need_weights=False)
        assert any("flash" in name for name, _ in made(recorder.log))


def test_nothing_is_left_behind() -> None:
    with as_on_cuda(AMPERE):
        pass
    with Recorder("meta") as recorder:
        functional.scaled_dot_product_attention(heads(), heads(), heads())
    assert max(size for _, size in made(recorder.log)) >= B * H * T * T * 2
