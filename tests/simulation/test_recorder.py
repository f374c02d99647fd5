"""The recorder sees each storage come and go once, on the CPU and on meta alike."""

import copy
import gc
import io
import weakref
from pathlib import Path
from typing import Self

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tritter_mem.simulation.events import Event, EventLog
from tritter_mem.simulation.peaks import find_peaks
from tritter_mem.simulation.recorder import Recorder
from tritter_model import labels

KB = 1024


@pytest.fixture(params=["cpu", "meta"])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def moves(log: EventLog) -> list[tuple[str, int, int]]:
    return [(event.kind, event.storage, event.bytes) for event in log]


def kilobytes(count: int, device: str) -> torch.Tensor:
    return torch.empty(count * KB, dtype=torch.uint8, device=device)


class TestStorages:
    """What counts as an allocation, and when it ends."""

    def test_first_sight_allocates_and_the_end_frees(self, device: str) -> None:
        with Recorder(device) as recorder:
            first = kilobytes(1, device)
            second = kilobytes(2, device)
            del first
            del second
        assert moves(recorder.log) == [
            ("alloc", 0, KB),
            ("alloc", 1, 2 * KB),
            ("free", 0, KB),
            ("free", 1, 2 * KB),
        ]

    def test_views_and_in_place_operators_make_no_storage(self, device: str) -> None:
        with Recorder(device) as recorder:
            base = torch.zeros(4, 4, device=device)
            row, turned, flat = base[1], base.t(), base.view(16)
            parts = base.split(2)
            base.add_(1)
            flat.mul_(2)
        assert moves(recorder.log) == [("alloc", 0, 64)]
        del row, turned, parts

    def test_a_view_keeps_its_storage_alive(self, device: str) -> None:
        with Recorder(device) as recorder:
            base = kilobytes(1, device)
            view = base[10:20]
            del base
            assert recorder.allocated_bytes == KB
            del view
            assert recorder.allocated_bytes == 0

    def test_an_unnamed_storage_object_is_not_a_dead_storage(self, device: str) -> None:
        """PyTorch keeps the object of a storage that only C++ holds; nothing may fire early."""
        with Recorder(device) as recorder:
            weight = torch.ones(256, device=device, requires_grad=True)
            loss = weight.exp().sum()  # the autograd node alone holds exp's output
            gc.collect()
            assert recorder.allocated_bytes == 1024 + 1024 + 4
            del loss
            gc.collect()
            assert recorder.allocated_bytes == 1024

    def test_backward_frees_saved_tensors(self, device: str) -> None:
        with Recorder(device) as recorder:
            weight = torch.ones(256, device=device, requires_grad=True)
            loss = weight.exp().sum()
            loss.backward()
            assert weight.grad is not None
            assert recorder.allocated_bytes == 1024 + 4 + 1024  # weight, loss, gradient

    def test_resize_takes_the_new_size_then_frees_the_old(self, device: str) -> None:
        with Recorder(device) as recorder:
            tensor = kilobytes(1, device)
            tensor.resize_(3 * KB)
            tensor.resize_(2 * KB)  # PyTorch never shrinks a storage
            del tensor
        assert moves(recorder.log) == [
            ("alloc", 0, KB),
            ("alloc", 1, 3 * KB),
            ("free", 0, KB),
            ("free", 1, 3 * KB),
        ]

    def test_storage_resized_behind_operators_is_noticed_at_the_next_one(self) -> None:
        with Recorder("cpu") as recorder:
            tensor = kilobytes(1, "cpu")
            tensor.untyped_storage().resize_(0)
            tensor.detach()
            assert recorder.allocated_bytes == 0
            tensor.untyped_storage().resize_(KB)
            tensor.detach()
            assert recorder.allocated_bytes == KB

    def test_out_argument_that_grows_counts_its_final_size(self, device: str) -> None:
        with Recorder(device) as recorder:
            out = torch.empty(0, device=device)
            torch.mm(torch.ones(2, 3, device=device), torch.ones(3, 4, device=device), out=out)
            assert recorder.allocated_bytes == 2 * 4 * 4

    def test_zero_bytes_are_no_event(self, device: str) -> None:
        with Recorder(device) as recorder:
            torch.empty(0, 5, device=device)
        assert moves(recorder.log) == []

    def test_every_output_of_an_operator_counts(self, device: str) -> None:
        with Recorder(device) as recorder:
            values, indices = torch.ones(8, device=device).topk(2)
            moments = torch._foreach_add([values, values], 1)
        sizes = [event.bytes for event in recorder.log if event.kind == "alloc"]
        assert sizes == [32, 8, 16, 8, 8]
        del indices, moments

    def test_inference_mode_hides_nothing(self, device: str) -> None:
        """There PyTorch hands out `linear` and `matmul` whole, with what they allocate inside."""

        def forward() -> torch.Tensor:
            x_BTD = torch.ones(2, 3, 8, device=device).transpose(0, 1)
            y_BTD = nn.functional.linear(x_BTD, torch.ones(8, 8, device=device))
            return torch.einsum("btd,bud->btu", y_BTD, x_BTD).softmax(-1) @ x_BTD

        logs = []
        for context in (torch.no_grad, torch.inference_mode):
            with context(), Recorder(device) as recorder:
                forward()
            logs.append(list(recorder.log))
        assert logs[0] == logs[1]
        assert len(logs[0]) > 10

    def test_operator_with_a_kernel_and_parts_runs_whole(self, device: str) -> None:
        x = torch.ones(KB, device=device, requires_grad=True)
        out = nn.functional.silu(x)
        with Recorder(device) as recorder:
            out.backward(torch.ones_like(out))
        made = [event.operator for event in recorder.log if event.kind == "alloc"]
        assert made == ["aten.ones_like.default", "aten.silu_backward.default"]

    def test_composite_that_returns_its_input_makes_no_storage(self, device: str) -> None:
        earlier = torch.ones(256, device=device)
        with torch.inference_mode(), Recorder(device) as recorder:
            nn.functional.dropout(earlier, training=False)
        assert moves(recorder.log) == []

    def test_memory_at_a_dead_storages_address_is_new(self, device: str) -> None:
        with Recorder(device) as recorder:
            for _ in range(100):
                kilobytes(1, device)
        assert len(recorder.log) == 200

    def test_loaded_and_copied_tensors_count(self, tmp_path: Path) -> None:
        """`set_` hands over storage that no operator made."""
        file = io.BytesIO()
        torch.save(torch.ones(256), file)
        file.seek(0)
        with Recorder("cpu") as recorder:
            loaded = torch.load(file)
            assert recorder.allocated_bytes == 1024
            copied = copy.deepcopy(loaded)
            assert recorder.allocated_bytes == 2048
            literal = torch.tensor([1.0, 2.0])
            assert recorder.allocated_bytes == 2048 + 8
        del copied, literal
        assert recorder.log.notes == {}

    def test_checkpointing_frees_and_recomputes(self, device: str) -> None:
        def peak(wrap: bool) -> int:
            layers = nn.ModuleList(nn.Linear(64, 64, device=device) for _ in range(12))
            with Recorder(device) as recorder:
                x_BD = torch.ones(256, 64, device=device)
                for layer in layers:
                    step = nn.Sequential(layer, nn.GELU(), nn.Tanh())
                    x_BD = checkpoint(step, x_BD, use_reentrant=False) if wrap else step(x_BD)
                x_BD.sum().backward()
            return recorder.peak_bytes

        assert peak(wrap=True) < 0.7 * peak(wrap=False)


class TestScope:
    """Which memory belongs to the recording."""

    def test_only_the_recorded_device_counts(self) -> None:
        with Recorder("meta") as recorder:
            torch.ones(10)
            torch.ones(10, device="meta")
        assert [event.bytes for event in recorder.log] == [40, 40]

    def test_earlier_storage_does_not_count_and_is_noted(self, device: str) -> None:
        earlier = torch.ones(256, device=device)
        with Recorder(device) as recorder:
            earlier.t()
            earlier.split(100)
            earlier.add_(1)
        assert moves(recorder.log) == []
        assert list(recorder.log.notes.values()) == [1]

    def test_earlier_storage_that_dies_leaves_no_trace(self, device: str) -> None:
        earlier = torch.ones(256, device=device)
        with Recorder(device) as recorder:
            earlier.t()
            del earlier
            later = torch.ones(256, device=device)
            assert recorder.allocated_bytes == 1024
        del later

    def test_adopted_storage_counts_from_then_on(self, device: str) -> None:
        earlier = torch.ones(256, device=device)
        with Recorder(device) as recorder:
            recorder.adopt(earlier, "weights")
            recorder.adopt(earlier[3:], "weights")
            earlier.t()
            del earlier
        assert list(recorder.log) == [
            Event("alloc", 0, 1024, "adopt", "", "", "weights"),
            Event("free", 0, 1024, "", "", "", "weights"),
        ]
        assert recorder.log.notes == {}

    def test_earlier_storage_can_be_adopted_after_it_was_seen(self, device: str) -> None:
        earlier = torch.ones(256, device=device)
        with Recorder(device) as recorder:
            earlier.t()
            recorder.adopt(earlier, "weights")
            assert recorder.allocated_bytes == 1024

    def test_adopting_recorded_storage_changes_its_category(self, device: str) -> None:
        with Recorder(device) as recorder:
            weight = torch.ones(256, device=device, requires_grad=True)
            (weight * 2).sum().backward()
            assert weight.grad is not None
            recorder.adopt(weight.grad, "gradients")
        assert find_peaks(recorder.log).components.gradients_bytes == 1024

    def test_tensors_with_their_own_layout_or_dispatch_are_noted(self) -> None:
        class Wrapper(torch.Tensor):
            @staticmethod
            def __new__(cls, inner: torch.Tensor) -> Self:
                return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

            @classmethod
            def __torch_dispatch__(cls, *call: object) -> torch.Tensor:
                return cls(torch.ones(4))

        with Recorder("cpu") as recorder:
            dense = torch.eye(4)
            sparse = dense.to_sparse()
            Wrapper(torch.ones(4)).exp()
            (sparse * 2).sum()
        assert list(recorder.log.notes) == [
            "tensors with their own layout or dispatch (sparse, subclasses), not counted"
        ]
        operators = {event.operator for event in recorder.log if event.kind == "alloc"}
        assert operators == {"aten.eye.default", "aten.ones.default", "aten.sum.default"}

    def test_parameters_count_once(self, device: str) -> None:
        with Recorder(device) as recorder:
            layer = nn.Linear(8, 4, device=device)
        assert recorder.allocated_bytes == (8 * 4 + 4) * 4
        del layer

    def test_nothing_is_recorded_after_the_end(self, device: str) -> None:
        with Recorder(device) as recorder:
            tensor = kilobytes(1, device)
        del tensor
        kilobytes(1, device)
        assert moves(recorder.log) == [("alloc", 0, KB)]

    def test_recording_keeps_no_tensor_alive(self, device: str) -> None:
        with Recorder(device):
            tensor = kilobytes(1, device)
            watcher = weakref.ref(tensor)
            del tensor
            assert watcher() is None


class TestDescription:
    """What each event says of itself."""

    def test_operator_and_category_are_those_of_the_allocation(self, device: str) -> None:
        with Recorder(device) as recorder:
            with labels.label(labels.KV_CACHE):
                cache = torch.zeros(4, device=device)
            del cache
        alloc, free = recorder.log
        assert (alloc.operator, alloc.category) == ("aten.zeros.default", "kv_cache")
        assert (free.operator, free.category) == ("", "kv_cache")

    def test_phases_mark_their_events(self, device: str) -> None:
        with Recorder(device) as recorder:
            with recorder.phase("load"):
                weight = kilobytes(1, device)
            with recorder.phase("forward"):
                output = kilobytes(2, device)
            del output
        assert [event.phase for event in recorder.log] == ["load", "forward", ""]
        del weight

    def test_phases_do_not_nest(self) -> None:
        recorder = Recorder("meta")
        with (
            pytest.raises(RuntimeError, match="'load' begins inside phase 'forward'"),
            recorder.phase("forward"),
            recorder.phase("load"),
        ):
            pass
        assert [span.name for span in recorder.log.spans] == ["forward"]

    def test_peak_starts_again_at_what_is_live(self, device: str) -> None:
        with Recorder(device) as recorder:
            kept = kilobytes(1, device)
            kilobytes(4, device)
            assert recorder.peak_bytes == 5 * KB
            recorder.reset_peak()
            assert recorder.peak_bytes == KB
        del kept

    def test_running_figures_equal_those_of_the_log(self, device: str) -> None:
        with Recorder(device) as recorder:
            model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(device)
            model(torch.ones(8, 16, device=device)).sum().backward()
        assert recorder.peak_bytes == find_peaks(recorder.log).allocated_peak_bytes
        assert recorder.allocated_bytes == sum(change for _, change in recorder.log.changes())


def step(device: str) -> None:
    """A training step with what models have: embedding, norm, residual, checkpointing, optimizer.

    SGD, because AdamW's step counters stay on the host, which is the recorded device on the CPU.
    """
    embedding = nn.Embedding(50, 16, device=device)
    with torch.device(device):
        block = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    parameters = [*embedding.parameters(), *block.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=True)
    x_BTD = embedding(torch.zeros(2, 8, dtype=torch.long, device=device))
    x_BTD = x_BTD + checkpoint(block, x_BTD, use_reentrant=False)
    loss = (x_BTD @ embedding.weight.t()).logsumexp(-1).sum()
    loss.backward()
    optimizer.step()


def test_meta_records_the_same_events_as_the_cpu() -> None:
    """The simulation rests on it."""
    logs = []
    for device in ("cpu", "meta"):
        with Recorder(device) as recorder:
            step(device)
        logs.append(list(recorder.log))
    cpu, meta = logs
    assert len(cpu) >= 100
    assert [event[:4] for event in cpu] == [event[:4] for event in meta]


def test_recording_is_deterministic(device: str) -> None:
    logs = []
    for _ in range(2):
        with Recorder(device) as recorder:
            step(device)
        logs.append(list(recorder.log))
    assert logs[0] == logs[1]


def test_an_emptied_cache_is_noted_on_meta_alone(device: str) -> None:
    before = torch.cuda.empty_cache
    with Recorder(device) as recorder:
        held = kilobytes(1, device)
        torch.cuda.empty_cache()
        del held
    assert recorder.log.emptied == ([1] if device == "meta" else [])
    assert torch.cuda.empty_cache is before
