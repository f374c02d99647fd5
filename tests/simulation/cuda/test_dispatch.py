"""Code on meta makes the choices that it makes on CUDA, and only while that is asked for."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import optimizer as optimizers

from tritter_mem.simulation.cuda.dispatch import as_on_cuda
from tritter_mem.simulation.recorder import Recorder

SIZE = 1024


@pytest.fixture
def _cuda() -> Iterator[None]:
    with as_on_cuda((9, 0)):
        yield


def ones(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.ones(shape, dtype=dtype, device="meta", requires_grad=grad)


def made(call: Callable[[], object]) -> list[tuple[str, int]]:
    with Recorder("meta") as recorder:
        call()
    return [(event.operator, event.bytes) for event in recorder.log if event.kind == "alloc"]


@pytest.mark.usefixtures("_cuda")
class TestOperators:
    """Operators with a path of their own on CUDA."""

    def test_dropout_keeps_a_mask_of_booleans(self) -> None:
        x = ones(SIZE, grad=True)
        assert made(lambda: functional.dropout(x, 0.1)) == [
            ("aten.native_dropout.default", SIZE),
            ("aten.native_dropout.default", 4 * SIZE),
        ]

    @pytest.mark.parametrize(("p", "training"), [(0.1, False), (0.0, True), (1.0, True)])
    def test_dropout_without_a_choice_is_the_usual_one(self, p: float, training: bool) -> None:
        x = ones(SIZE)
        names = [name for name, _ in made(lambda: functional.dropout(x, p, training))]
        assert "aten.native_dropout.default" not in names

    def test_bias_is_added_in_place_to_what_is_not_contiguous(self) -> None:
        weight, bias = ones(SIZE, 8, grad=True), ones(SIZE, grad=True)
        turned = ones(4, 2, 8).transpose(0, 1)
        names = [name for name, _ in made(lambda: functional.linear(turned, weight, bias))]
        assert "aten.add.Tensor" not in names
        assert names.count("aten.addmm.default") == 0
        whole = [name for name, _ in made(lambda: functional.linear(ones(2, 4, 8), weight, bias))]
        assert whole[-1] == "aten.addmm.default"

    @pytest.mark.parametrize("softmax", [functional.softmax, functional.log_softmax])
    def test_softmax_of_float16_makes_no_float32_copy(self, softmax: Callable[..., Tensor]) -> None:
        x = ones(SIZE, dtype=torch.float16)
        assert len(made(lambda: softmax(x, -1, dtype=torch.float32))) == 1
        y = ones(SIZE, dtype=torch.bfloat16)
        assert len(made(lambda: softmax(y, -1, dtype=torch.float32))) == 2

    def test_rms_norm_saves_its_input_and_a_sum_a_row(self) -> None:
        x = ones(16, SIZE, dtype=torch.bfloat16, grad=True)
        weight = ones(SIZE, dtype=torch.bfloat16, grad=True)
        found: list[Tensor] = []
        sizes = [n for _, n in made(lambda: found.append(functional.rms_norm(x, (SIZE,), weight)))]
        assert sorted(sizes) == [16 * 4, 16 * SIZE * 2]
        found[0].sum().backward()
        for tensor in (x, weight):
            assert tensor.grad is not None
            assert (tensor.grad.shape, tensor.grad.dtype) == (tensor.shape, tensor.dtype)

    @pytest.mark.filterwarnings("ignore:Mismatch dtype")
    def test_rms_norm_of_two_types_is_the_usual_one(self) -> None:
        x, weight = ones(16, SIZE, dtype=torch.bfloat16), ones(SIZE)
        assert len(made(lambda: functional.rms_norm(x, (SIZE,), weight))) > 2


@pytest.mark.usefixtures("_cuda")
class TestOptimizers:
    """Defaults that depend on the device."""

    def steps(self, **options: object) -> list[str]:
        layers = [nn.Linear(8, 8, device="meta") for _ in range(3)]
        parameters = [p for layer in layers for p in layer.parameters()]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer = torch.optim.AdamW(parameters, **options)
        optimizer.step()
        return [name for name, _ in made(optimizer.step)]

    def test_all_tensors_at_once(self) -> None:
        assert self.steps() == ["aten._foreach_sqrt.default"] * 6

    def test_one_at_a_time_where_the_code_says_so(self) -> None:
        assert "aten._foreach_sqrt.default" not in self.steps(foreach=False)

    def test_fused_makes_nothing(self) -> None:
        assert self.steps(fused=True) == []

    def test_clipping_takes_all_norms_at_once(self) -> None:
        weights = [ones(8, grad=True) for _ in range(3)]
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        names = [name for name, _ in made(lambda: nn.utils.clip_grad_norm_(weights, 1.0))]
        assert names.count("aten._foreach_norm.Scalar") == 3


@pytest.mark.usefixtures("_cuda")
class TestDevice:
    """Code that names CUDA itself."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda: torch.ones(3, device="cuda"),
            lambda: torch.ones(3, device=torch.device("cuda", 1)),
            lambda: torch.ones(3).cuda(),
            lambda: torch.ones(3).to("cuda:0"),
            lambda: torch.ones(3).to(torch.device("cuda"), torch.float16),
            lambda: torch.ones(3).to(device="cuda"),
            lambda: nn.Linear(3, 3).cuda().weight,
            lambda: nn.Linear(3, 3).to("cuda").weight,
            lambda: nn.Linear(3, 3, device="cuda").weight,
            lambda: torch.ones(3).pin_memory().cuda(non_blocking=True),
        ],
    )
    def test_is_on_meta(self, make: Callable[[], Tensor]) -> None:
        assert make().is_meta

    def test_other_devices_stay(self) -> None:
        assert torch.ones(3, device="cpu").to("cpu").device.type == "cpu"
        assert torch.ones(3).pin_memory().device.type == "cpu"

    def test_synchronising_does_nothing(self) -> None:
        torch.cuda.synchronize()

    @pytest.mark.parametrize("device", ["cuda", "meta"])
    def test_gradient_scaler_passes_through(self, device: str) -> None:
        weight = ones(8, grad=True)
        optimizer = torch.optim.SGD([weight])
        scaler = torch.amp.GradScaler(device)
        scaler.scale(weight.sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 1.0


def test_everything_is_as_before_afterwards() -> None:
    places = [
        (torch.autocast, "__init__"),
        (torch.amp.GradScaler, "__init__"),
        (torch, "clear_autocast_cache"),
        (torch.cuda, "synchronize"),
        (torch.utils.checkpoint, "_infer_device_type"),
        (optimizers, "_get_foreach_kernels_supported_devices"),
    ]
    before = [getattr(place, name) for place, name in places]
    with pytest.raises(KeyError), as_on_cuda((9, 0)):
        raise KeyError
    assert [getattr(place, name) for place, name in places] == before
    x = ones(4, 4)
    with torch.autocast("cpu"):
        assert (x @ x).dtype == torch.float32
    assert not torch._C._dispatch_get_registrations_for_dispatch_key("AutocastPrivateUse1")
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_default_device_that_was_set_before_is_set_again() -> None:
    torch.set_default_device("cpu")
    try:
        with as_on_cuda((9, 0)):
            torch.set_default_device("meta")
        assert torch.as_tensor(torch.ones(3)).device.type == "cpu"
        with pytest.raises(NotImplementedError):
            torch.as_tensor(torch.ones(3, device="meta"))
    finally:
        torch.set_default_device(None)


def test_defaults_that_code_sets_end_with_it() -> None:
    with as_on_cuda((9, 0)):
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.bfloat16)
        x = torch.ones(3)
        assert (x.is_meta, x.dtype) == (True, torch.bfloat16)
        assert x.cuda().is_meta
    y = torch.ones(3)
    assert (y.device.type, y.dtype) == ("cpu", torch.float32)
    assert torch.as_tensor(torch.ones(3, device="meta")).is_meta  # no device is set at all


def test_other_devices_compute_as_ever() -> None:
    weight, x = torch.randn(4, 4), torch.randn(2, 3, 8, 4)
    plain = functional.scaled_dot_product_attention(x, x, x)
    with as_on_cuda((9, 0)), torch.autocast("cuda"):
        inside = functional.scaled_dot_product_attention(x, x, x)
        assert (weight @ weight).dtype == torch.float32
    assert torch.equal(inside, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_grouped_products_are_of_every_type_with_rows_of_whole_16_bytes(dtype: torch.dtype) -> None:
    left = torch.empty(10, 16, dtype=dtype, device="meta", requires_grad=True)
    right = torch.empty(3, 16, 12, dtype=dtype, device="meta", requires_grad=True)
    offsets = torch.empty(3, dtype=torch.int32, device="meta")
    step = 16 // left.element_size()
    with as_on_cuda((9, 0)):
        product = functional.grouped_mm(left, right, offs=offsets)
        product.sum().backward()
    assert product.shape == (10, 12)
    assert product.stride() == (-(-12 // step) * step, 1)
    assert left.grad is not None
    assert right.grad is not None
    assert (left.grad.shape, right.grad.shape) == (left.shape, right.shape)


def test_a_product_of_two_types_fails_as_on_a_card() -> None:
    with as_on_cuda((9, 0)), pytest.raises(RuntimeError, match="same dtype"):
        functional.linear(ones(2, 4), ones(3, 4).to(torch.bfloat16))
