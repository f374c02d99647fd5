"""Autocast on meta tensors does what it does on CUDA: lists, policies, and the cache of casts."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tritter_mem.simulation.cuda import autocast
from tritter_mem.simulation.cuda.dispatch import as_on_cuda
from tritter_mem.simulation.recorder import Recorder

LISTS = (
    autocast.LOWER_PRECISION,
    autocast.FLOAT32,
    autocast.FLOAT32_RESULT,
    tuple(autocast.FLOAT32_OVERLOAD),
    autocast.WIDEST,
    autocast.REFUSED,
)


@pytest.fixture
def _cuda() -> Iterator[None]:
    with as_on_cuda((9, 0)):
        yield


def ones(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.ones(shape, dtype=dtype, device="meta", requires_grad=grad)


def half() -> torch.autocast:
    return torch.autocast("cuda", dtype=torch.bfloat16)


def test_lists_are_those_of_the_installed_pytorch() -> None:
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    ours = Counter(name for names in LISTS for name in names)
    assert set(ours) == {name.removeprefix("aten::") for name in registered}
    assert max(ours.values()) == 1


@pytest.mark.usefixtures("_cuda")
@pytest.mark.parametrize(
    ("call", "dtype"),
    [
        (lambda x: x @ x, torch.bfloat16),
        (lambda x: torch.einsum("ij,jk->ik", x, x), torch.bfloat16),
        (lambda x: functional.linear(x, x), torch.bfloat16),
        (lambda x: functional.conv1d(x[None], x[..., None]), torch.bfloat16),
        (lambda x: x.bfloat16().exp(), torch.float32),
        (lambda x: x.bfloat16() ** 2, torch.float32),
        (lambda x: functional.layer_norm(x.bfloat16(), (8,)), torch.float32),
        (lambda x: functional.mse_loss(x.bfloat16(), x.bfloat16()), torch.float32),
        (lambda x: x.bfloat16().softmax(-1), torch.float32),
        (lambda x: x.bfloat16().softmax(-1, torch.bfloat16), torch.bfloat16),
        (lambda x: x.bfloat16().sum(), torch.float32),
        (lambda x: x.bfloat16().sum(0, dtype=torch.bfloat16), torch.bfloat16),
        (lambda x: torch.ops.aten.norm.Scalar(x.bfloat16(), 2), torch.float32),
        (lambda x: torch.ops.aten.norm.ScalarOpt_dim(x.bfloat16(), 2, [0]), torch.float32),
        (lambda x: torch.addcmul(x.bfloat16(), x.bfloat16(), x), torch.float32),
        (lambda x: torch.dot(x[0].bfloat16(), x[0].bfloat16()), torch.bfloat16),
        (lambda x: functional.relu(x.bfloat16()), torch.bfloat16),
        (lambda x: x.double() @ x.double(), torch.float64),
        (lambda x: x.long().sum(), torch.int64),
    ],
)
def test_each_policy_gives_its_type(call: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    with half():
        assert call(ones(8, 8)).dtype == dtype


@pytest.mark.usefixtures("_cuda")
def test_cross_entropy_casts_inside_as_on_cuda() -> None:
    """`cross_entropy` is in no list: its log-softmax stays, its loss is cast."""
    log = _recorded(lambda: functional.cross_entropy(ones(4, 16).bfloat16(), ones(4).long()))
    assert [size for name, size in log if "softmax" in name] == [4 * 16 * 2]
    assert ("aten._to_copy.default", 4 * 16 * 4) in log


def _recorded(call: Callable[[], object]) -> list[tuple[str, int]]:
    with half(), Recorder("meta") as recorder:
        call()
    return [(event.operator, event.bytes) for event in recorder.log if event.kind == "alloc"]


@pytest.mark.usefixtures("_cuda")
def test_unsafe_loss_is_refused_as_on_cuda() -> None:
    with half(), pytest.raises(RuntimeError, match="binary_cross_entropy_with_logits"):
        functional.binary_cross_entropy(ones(3), ones(3))


@pytest.mark.usefixtures("_cuda")
class TestRegion:
    """Where autocast is on."""

    def test_off_outside_and_where_it_is_disabled(self) -> None:
        x = ones(4, 4)
        assert (x @ x).dtype == torch.float32
        with half():
            assert torch.is_autocast_enabled("cuda")
            with torch.autocast("cuda", enabled=False):
                assert (x @ x).dtype == torch.float32
            assert (x @ x).dtype == torch.bfloat16
        assert (x @ x).dtype == torch.float32

    def test_device_type_of_the_simulation_means_cuda(self) -> None:
        x = ones(4, 4)
        with torch.autocast(x.device.type):
            assert (x @ x).dtype == torch.float16

    def test_as_a_decorator(self) -> None:
        @torch.autocast("cuda", dtype=torch.bfloat16)
        def product(x: Tensor) -> Tensor:
            return x @ x

        assert product(ones(4, 4)).dtype == torch.bfloat16

    def test_backward_computes_in_the_types_of_forward(self) -> None:
        weight = ones(4, 4, grad=True)
        with half():
            loss = (ones(2, 4) @ weight).sum()
        loss.backward()
        assert weight.grad is not None
        assert weight.grad.dtype == torch.float32

    def test_modules_that_pytorch_runs_in_one_call(self) -> None:
        attention = nn.MultiheadAttention(16, 4, device="meta", batch_first=True)
        x = ones(2, 8, 16)
        with half():
            assert attention(x, x, x, need_weights=False)[0].dtype == torch.bfloat16

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_recomputation_remembers(self, reentrant: bool) -> None:
        weight, x = ones(4, 4, grad=True), ones(2, 4, grad=True)
        seen: list[torch.dtype] = []

        def layer(x: Tensor) -> Tensor:
            y = x @ weight
            seen.append(y.dtype)
            return y * y

        with half():
            loss = checkpoint(layer, x, use_reentrant=reentrant).float().sum()
        loss.backward()
        assert seen == [torch.bfloat16, torch.bfloat16]


def copies(device: str, run: Callable[[Tensor, Tensor], object], dtype: torch.dtype) -> list[int]:
    """Bytes of all casts that a run makes of a weight and of what it is multiplied with."""
    weight = torch.ones(8, 8, device=device, requires_grad=True)
    x = torch.ones(2, 8, device=device)
    context = as_on_cuda((9, 0)) if device == "meta" else nullcontext()
    kind = "cuda" if device == "meta" else "cpu"
    with context, Recorder(device) as recorder, torch.autocast(kind, dtype=dtype):
        run(weight, x)
    casts = ("aten._to_copy.default", "aten.to.dtype")
    return [event.bytes for event in recorder.log if event.operator in casts]


def twice(weight: Tensor, x: Tensor) -> None:
    for _ in range(2):
        x @ weight


def twice_without_gradient(weight: Tensor, x: Tensor) -> None:
    with torch.no_grad():
        twice(weight, x)


def twice_in_inference_mode(weight: Tensor, x: Tensor) -> None:
    with torch.inference_mode():
        twice(weight, x)


def twice_without_cache(weight: Tensor, x: Tensor) -> None:
    kind = "cuda" if x.is_meta else "cpu"
    with torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=False):
        twice(weight, x)


def twice_of_a_view(weight: Tensor, x: Tensor) -> None:
    twice(weight.t(), x)


@pytest.mark.parametrize(
    "run",
    [twice, twice_without_gradient, twice_in_inference_mode, twice_without_cache, twice_of_a_view],
)
def test_cache_keeps_what_pytorch_keeps(run: Callable[[Tensor, Tensor], object]) -> None:
    """The cache is one for all devices, so the CPU's autocast shows its rule."""
    assert copies("meta", run, torch.bfloat16) == copies("cpu", run, torch.bfloat16)


def test_cached_casts_live_until_the_outermost_region_ends() -> None:
    weight, x = ones(8, 8, grad=True), ones(2, 8)
    with as_on_cuda((9, 0)), Recorder("meta") as recorder:
        with half():
            with half(), torch.no_grad():
                x @ weight
            assert recorder.allocated_bytes == 8 * 8 * 2
        assert recorder.allocated_bytes == 0
