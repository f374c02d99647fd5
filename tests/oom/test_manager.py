"""MemoryManager: on each rung, alone and combined, in training and inference, on a simulated card.

The capacity is a card's; the tensors are real, on the CPU. Tests marked `gpu` do it for real.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.oom.nets import (
    BATCH,
    ROOMY,
    TOKENS,
    Batch,
    Net,
    count,
    gradients,
    loss,
    make,
    reserved_bytes,
    without_automatic_collection,
)
from tritter_mem import MemoryManager
from tritter_mem.devices.cuda import CudaDevice
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.measure.out_of_memory import LadderFailedError
from tritter_mem.oom.jobs import inference_job, training_job, truncating
from tritter_mem.oom.ladder import AS_IT_IS, CLEAR_CACHE, Job, Offers, Settings, rungs
from tritter_mem.oom.manager import JobOutcome
from tritter_mem.oom.simulated_device import SimulatedDevice
from tritter_mem.units import GB, MiB

EVERY_2ND, EVERY = Settings(checkpoint_every=2), Settings(checkpoint_every=1)
COMBINED = Settings(checkpoint_every=1, micro_batch=2)


@pytest.fixture(autouse=True, scope="module")
def _settled() -> Iterator[None]:
    """What is imported is not looked through at every collection: that takes a second a try."""
    model, batch = make()
    training_job(model, loss, batch).run(EVERY)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice(ROOMY) as found:
        yield found


def managed(device: SimulatedDevice) -> MemoryManager:
    return MemoryManager(budget_gb=2, headroom_gb=1, device=device)


def names(outcome: JobOutcome[object]) -> list[tuple[str, str]]:
    return [(step.rung, step.ended) for step in outcome.ladder.steps]


def test_specification_names_and_defaults(device: SimulatedDevice) -> None:
    manager = MemoryManager(device=device)
    assert (manager.budget_gb, manager.headroom_gb) == (15.0, 1.0)
    assert manager.limit_bytes == 14 * GB


@pytest.mark.parametrize(("budget", "headroom"), [(0, 0), (1, 1), (1, -1), (float("nan"), 0)])
def test_a_budget_that_leaves_nothing_is_refused(
    device: SimulatedDevice, budget: float, headroom: float
) -> None:
    with pytest.raises(UsageError, match="budget_gb, headroom_gb: got"):
        MemoryManager(budget, headroom, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_way_out_is_named() -> None:
    with pytest.raises(MeasureError, match="SimulatedDevice"):
        MemoryManager()


def test_can_allocate_within_budget_and_device() -> None:
    with SimulatedDevice(200 * MiB) as device:
        held = torch.empty(50 * MiB, dtype=torch.uint8)
        size = held.nbytes / GB
        assert MemoryManager(1, 0, device).can_allocate(0.1)
        assert not MemoryManager(1, 0, device).can_allocate(0.2)  # the device
        assert MemoryManager(2 * size, 0, device).can_allocate(size)
        assert not MemoryManager(2 * size, size / 2, device).can_allocate(size)  # the headroom
        with pytest.raises(UsageError, match="size_gb: got -1"):
            MemoryManager(1, 0, device).can_allocate(-1)


def test_cleared_cache_has_neither_cycles_nor_segments(device: SimulatedDevice) -> None:
    with without_automatic_collection():
        cycle: list[object] = [torch.empty(30 * MiB, dtype=torch.uint8)]
        cycle.append(cycle)
        del cycle
        assert device.memory().allocated_bytes == 30 * MiB
        managed(device).clear_cache()
    assert device.memory()[:2] == (0, 0)


@pytest.mark.parametrize(
    ("settings", "tries"),
    [(AS_IT_IS, 1), (EVERY_2ND, 4), (EVERY, 5), (COMBINED, 7)],
    ids=str,
)
def test_training_ends_on_the_first_rung_that_fits(settings: Settings, tries: int) -> None:
    wanted_model, wanted_batch = make()
    wanted = loss(wanted_model, *wanted_batch)
    wanted.backward()
    with SimulatedDevice(reserved_bytes(settings)) as device:
        model, batch = make()
        job = training_job(model, loss, batch, count)
        outcome = managed(device).run(job)
    assert outcome.settings == settings
    ended = [*["out of memory"] * (tries - 1), "fits"]
    assert names(outcome) == [
        (rung.name, end) for rung, end in zip(rungs(job.offers), ended, strict=False)
    ]
    torch.testing.assert_close(outcome.value, wanted.detach())
    for got, own in zip(gradients(model), gradients(wanted_model), strict=True):
        torch.testing.assert_close(got, own)


@pytest.mark.parametrize("at_once", [5, 3, 1])
def test_gradients_in_pieces_are_those_of_the_whole_batch(at_once: int) -> None:
    """Pieces are of different sizes, and so are the numbers of targets in them."""
    model, batch = make()
    model.double()
    batch = (batch[0].double(), batch[1])
    job = training_job(model, loss, batch, count)
    whole, wanted = job.run(AS_IT_IS), gradients(model)
    job.undo()
    pieces = job.run(Settings(micro_batch=at_once))
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=0)
    for got, own in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(got, own, rtol=1e-9, atol=1e-15)


def test_a_cured_run_equals_one_that_started_so() -> None:
    """Dropout draws the same numbers, buffers count one run: bit for bit the same."""
    model, batch = make(dropout=0.5)
    torch.manual_seed(7)
    wanted = training_job(model, loss, batch, count).run(COMBINED)
    with SimulatedDevice(reserved_bytes(COMBINED)) as device:
        cured, batch = make(dropout=0.5)
        torch.manual_seed(7)
        outcome = managed(device).run(training_job(cured, loss, batch, count))
    assert len(outcome.ladder.steps) > 1
    assert outcome.settings == COMBINED
    assert torch.equal(outcome.value, wanted)
    assert torch.equal(cured.calls, model.calls)
    for got, own in zip(gradients(cured), gradients(model), strict=True):
        assert torch.equal(got, own)


def test_nothing_is_kept_between_tries() -> None:
    bases: list[int] = []
    with SimulatedDevice(reserved_bytes(COMBINED)) as device:
        model, batch = make()
        job = training_job(model, loss, batch, count)
        bases.append(device.memory().allocated_bytes)

        def run(settings: Settings) -> Tensor:
            bases.append(device.memory().allocated_bytes)
            return job.run(settings)

        with without_automatic_collection():
            outcome = managed(device).run(replace(job, run=run))
        tries = len(outcome.ladder.steps)
        assert bases == [bases[0]] * (1 + tries)
        assert tries > 3
        del outcome
        model.zero_grad(set_to_none=True)
        assert device.memory().allocated_bytes == bases[0]
        assert all("forward" not in vars(layer) for layer in model.layers)


def test_the_next_step_starts_where_the_last_one_ended() -> None:
    with SimulatedDevice(reserved_bytes(COMBINED)) as device:
        model, batch = make()
        manager = managed(device)
        first = manager.run(training_job(model, loss, batch, count))
        model.zero_grad()
        second = manager.run(training_job(model, loss, batch, count), first.settings)
    assert names(second) == [("as before", "fits")]
    assert list(manager.history) == [first.ladder, second.ladder]


def failing(error: Callable[[], Exception], times: int) -> tuple[Job[str], list[Settings]]:
    """A step function that fails a few times, whatever its settings, and its calls."""
    calls: list[Settings] = []

    def run(settings: Settings) -> str:
        calls.append(settings)
        if len(calls) <= times:
            raise error()
        return "done"

    offers = Offers(checkpoint_every=(2, 1), batch=4, window=128)
    return Job(run=run, offers=offers), calls


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


@pytest.mark.parametrize("times", range(7))
def test_any_function_goes_down_every_rung_in_order(device: SimulatedDevice, times: int) -> None:
    job, calls = failing(out_of_memory, times)
    outcome = managed(device).run(job)
    assert outcome.value == "done"
    assert calls == [rung.settings for rung in rungs(job.offers)][: times + 1]
    failed = outcome.ladder.steps[:-1]
    assert {step.detail for step in failed} <= {"CUDA out of memory. Tried to allocate 2.00 GiB"}


def test_a_cycle_that_holds_memory_is_cured_by_clearing_the_cache() -> None:
    with SimulatedDevice(100 * MiB) as device, without_automatic_collection():
        cycle: list[object] = [torch.empty(60 * MiB, dtype=torch.uint8)]
        cycle.append(cycle)
        del cycle
        job = Job(run=lambda _: torch.empty(60 * MiB, dtype=torch.uint8), offers=Offers(batch=4))
        outcome = managed(device).run(job)
    assert names(outcome) == [("as it is", "out of memory"), (CLEAR_CACHE, "fits")]


@pytest.mark.parametrize(
    "error", [ValueError("wrong"), RuntimeError("shapes differ"), KeyboardInterrupt()], ids=repr
)
def test_another_error_passes_untouched(device: SimulatedDevice, error: BaseException) -> None:
    calls = []

    def run(settings: Settings) -> None:
        calls.append(settings)
        raise error

    with pytest.raises(type(error)) as caught:
        managed(device).run(Job(run=run, offers=Offers(batch=8)))
    assert caught.value is error
    assert calls == [AS_IT_IS]
    assert error.__context__ is None
    assert not hasattr(error, "__notes__")


def test_failure_says_how_memory_stood_what_was_largest_and_what_would_help() -> None:
    with SimulatedDevice(3 * MiB) as device, without_automatic_collection():
        model, batch = make()
        job = training_job(model, loss, batch, count)
        base = device.memory().allocated_bytes
        job = replace(job, advise=lambda budget: [f"plan suggests: less than {budget}"])
        with pytest.raises(LadderFailedError) as caught:
            managed(device).run(job)
        assert device.memory().allocated_bytes == base  # while the error is still there
    tried, last, stood, largest, advised = caught.value.problems
    assert tried.startswith(
        "out of memory on every rung: as it is, clear cache, checkpoint every 4"
    )
    assert tried.endswith("1 of 8 sequences at a time")
    assert "requested" in last
    assert "reserved" in stood
    assert largest.startswith("largest of what was alive: activations")
    assert advised == f"plan suggests: less than {GB}"
    assert caught.value.exit_code == 3
    assert caught.value.ladder.ended_on is None


def test_truncating_is_refused_in_training_unless_asked_for(device: SimulatedDevice) -> None:
    job, calls = failing(out_of_memory, 6)
    job = replace(job, offers=replace(job.offers, training=True))
    with pytest.raises(LadderFailedError, match="refused in training, unless asked") as caught:
        managed(device).run(job)
    assert all(settings.window is None for settings in calls)
    assert caught.value.ladder.steps[-1].ended == "refused"


def test_training_truncates_where_it_is_asked_to() -> None:
    model, batch = make()
    job = truncating(training_job(model, loss, batch, count), 5)
    got = job.run(Settings(window=5))
    wanted = loss(model, batch[0][:, -5:], batch[1][:, -5:])
    torch.testing.assert_close(got, wanted.detach())
    assert not list(rungs(job.offers))[-1].refused


@pytest.mark.parametrize("window", [None, 7])
def test_inference_in_pieces_and_truncated_returns_what_the_model_does(window: int | None) -> None:
    model, (inputs, _) = make()
    model.eval()
    with torch.inference_mode():
        job = inference_job(model, inputs, window=window)
        wanted = model(inputs[:, -(window or TOKENS) :])
        got = job.run(Settings(micro_batch=3, window=window))
    torch.testing.assert_close(got, wanted)
    assert job.offers == Offers(batch=BATCH, window=window)


@pytest.mark.parametrize(
    ("rows", "last"),
    [(8, "4 of 8 sequences at a time"), (1, "truncate to the last 32 tokens"),
     (2, "truncate to the last 32 tokens")],
)  # fmt: skip
def test_inference_goes_from_pieces_to_the_window(rows: int, last: str) -> None:
    """As many tokens in 8 sequences as in one; in two of them twice as many."""
    model, (inputs, _) = make()
    model.eval()
    given = inputs.expand(1, -1, -1, -1).reshape(min(rows, 8), -1, inputs.shape[-1])
    given = torch.cat((given, given), 1) if rows == 2 else given
    with SimulatedDevice(2 * MiB) as device, torch.inference_mode():
        outcome = managed(device).run(inference_job(model, given, window=32))
    assert outcome.ladder.steps[-1].rung == last
    assert outcome.ladder.steps[-1].changes_result == (rows != 8)
    assert outcome.settings.micro_batch == {8: 4, 1: None, 2: 1}[rows]


class Named(dict[str, Tensor]):
    """A result as transformers makes them: a dict that is made of keywords."""


class Several(nn.Module):
    def forward(self, x: Tensor, mask: Tensor, scale: float) -> Named:
        return Named(out=x * mask * scale, pair=(x, [x + 1]))  # type: ignore[arg-type]


def test_results_of_pieces_are_joined_whatever_they_are_made_of() -> None:
    x, mask = torch.randn(5, 4), torch.randn(5, 4)
    job = inference_job(Several(), x, mask=mask, scale=2.0)
    whole, pieces = job.run(AS_IT_IS), job.run(Settings(micro_batch=2))
    assert isinstance(pieces, Named)
    assert torch.equal(pieces["out"], whole["out"])
    assert torch.equal(pieces["pair"][1][0], whole["pair"][1][0])


def test_a_result_that_cannot_be_joined_is_named() -> None:
    class Scalar(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    with pytest.raises(UsageError, match="got a result of type Tensor, which cannot be joined"):
        inference_job(Scalar(), torch.randn(4, 2)).run(Settings(micro_batch=2))


def test_managed_forward_yields_the_output_once_with_what_cured_it() -> None:
    """The backward pass, here on a device without a limit, recomputes what the cure dropped."""
    with SimulatedDevice(reserved_bytes(EVERY)) as device:
        model, batch = make()
        manager = managed(device)
        with manager.managed_forward(model, batch[0]) as output:
            pass
    assert manager.history[-1].ended_on is not None
    assert manager.history[-1].ended_on.settings != {}
    functional.cross_entropy(output.flatten(0, 1), batch[1].flatten()).backward()
    own, batch = make()
    loss(own, *batch).backward()
    for got, wanted in zip(gradients(model), gradients(own), strict=True):
        assert torch.equal(got, wanted)


class Stateful(nn.Module):
    """A forward pass changes buffers: statistics in place, a cache that grows, one that is new."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.cache: Tensor
        self.register_buffer("cache", torch.zeros(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.cache = torch.cat((self.cache, x.detach()))
        if "last" not in self._buffers:
            self.register_buffer("last", self.cache[-1])
        out: Tensor = self.norm(x)
        return out


@pytest.mark.parametrize("learns", [True, False])
def test_a_cured_forward_pass_changes_buffers_once(device: SimulatedDevice, learns: bool) -> None:
    x, once, cured = torch.randn(6, 4), Stateful(), Stateful()
    cache, tries = cured.cache, []

    def fail_at_first(*_: object) -> None:
        tries.append(dict(cured.named_buffers()))
        if len(tries) < 2:
            raise out_of_memory()

    cured.register_forward_hook(fail_at_first)
    with torch.set_grad_enabled(learns):
        once(x)
        with managed(device).managed_forward(cured, x):
            pass
    assert len(tries) == 2
    assert len(cache) == 0
    for (name, got), (own, wanted) in zip(cured.named_buffers(), once.named_buffers(), strict=True):
        assert name == own
        assert torch.equal(got, wanted)


def test_buffers_are_as_before_when_every_rung_failed(device: SimulatedDevice) -> None:
    model = Stateful()
    model.register_forward_hook(lambda *_: (_ for _ in ()).throw(out_of_memory()))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(LadderFailedError):
        managed(device).run(inference_job(model, torch.randn(6, 4)))
    after = dict(model.named_buffers())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_managed_forward_keeps_no_copy_of_buffers_for_its_body(device: SimulatedDevice) -> None:
    model, (inputs, _) = make()
    model.register_buffer("table", torch.zeros(MiB, dtype=torch.uint8))
    with torch.no_grad():
        base = device.memory().allocated_bytes
        with managed(device).managed_forward(model, inputs) as output:
            assert device.memory().allocated_bytes - base < output.nbytes + MiB


def test_managed_forward_keeps_no_hold_of_the_output(device: SimulatedDevice) -> None:
    model, (inputs, _) = make()
    with managed(device).managed_forward(model, inputs) as output:
        kept = weakref.ref(output)
        del output
        gc.collect()
        assert kept() is None


def test_the_body_of_managed_forward_is_not_run_again(device: SimulatedDevice) -> None:
    model, (inputs, _) = make()
    bodies = 0

    def use() -> None:
        nonlocal bodies
        with managed(device).managed_forward(model, inputs):
            bodies += 1
            raise out_of_memory()

    with pytest.raises(torch.OutOfMemoryError) as caught:
        use()
    assert bodies == 1
    assert "run(training_job" in caught.value.__notes__[0]


def test_ahead_of_the_failure_the_first_rung_that_is_predicted_to_fit_is_taken(
    device: SimulatedDevice,
) -> None:
    job, calls = failing(out_of_memory, 0)
    needs = {4: 3, 2: 2, 1: 1}
    predicted: list[Settings] = []

    def predict(settings: Settings) -> int:
        predicted.append(settings)
        return round(GB * needs[settings.micro_batch or 4] / 2)

    outcome = managed(device).run(replace(job, predict=predict))
    assert calls == [Settings(checkpoint_every=1, micro_batch=2)]
    assert len(predicted) == len(set(predicted))
    assert names(outcome) == [
        ("as it is", "does not fit"),
        ("checkpoint every 2nd layer", "does not fit"),
        ("checkpoint every layer", "does not fit"),
        ("2 of 4 sequences at a time", "fits"),
    ]
    assert outcome.ladder.steps[0].needs_bytes == 1.5 * GB


def test_a_wrong_prediction_is_put_right_by_the_rungs_that_are_left(
    device: SimulatedDevice,
) -> None:
    job, calls = failing(out_of_memory, 1)
    fits = Settings(checkpoint_every=1)
    predict = lambda settings: 0 if settings == fits else 9 * GB  # noqa: E731
    outcome = managed(device).run(replace(job, predict=predict))
    assert calls == [fits, replace(fits, micro_batch=2)]
    assert outcome.value == "done"


def test_where_nothing_is_predicted_to_fit_the_last_rung_is_tried(device: SimulatedDevice) -> None:
    job, calls = failing(out_of_memory, 0)
    managed(device).run(replace(job, predict=lambda _: 9 * GB))
    assert calls == [list(rungs(job.offers))[-1].settings]


def test_gradients_from_before_are_refused() -> None:
    model, batch = make()
    loss(model, *batch).backward()
    with pytest.raises(UsageError, match=r"there are gradients already, of layers\.0\.up\.weight"):
        training_job(model, loss, batch)


def test_a_batch_of_unequal_tensors_is_refused() -> None:
    with pytest.raises(UsageError, match=r"batch: got shapes \(2, 3\), \(3,\)"):
        training_job(Net(), loss, (torch.zeros(2, 3), torch.zeros(3)))


def test_batch_norm_is_neither_cut_nor_run_twice() -> None:
    model = nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(3)))
    offers = training_job(model, loss, (torch.zeros(4, 4),)).offers
    assert offers == Offers(training=True)
    with torch.no_grad():
        assert inference_job(model, torch.zeros(4, 4)).offers == Offers()
    assert training_job(model.eval(), loss, (torch.zeros(4, 4),)).offers.batch == 4


@pytest.mark.parametrize("settings", [AS_IT_IS, EVERY], ids=str)
def test_one_module_in_two_threads_is_refused(settings: Settings) -> None:
    model, batch = make()
    inside, done = threading.Event(), threading.Event()

    def slow(model: nn.Module, *batch: Tensor) -> Tensor:
        inside.set()
        done.wait(30)
        return loss(model, *batch)

    job = training_job(model, slow, batch)
    others = [job, inference_job(model, batch[0]), inference_job(model.layers[0], batch[0])]
    thread = threading.Thread(target=job.run, args=(settings,))
    thread.start()
    try:
        assert inside.wait(30)
        for other in others:
            with pytest.raises(
                UsageError, match=r"runs in another ladder.*; let that one end first"
            ):
                other.run(settings)
    finally:
        done.set()
        thread.join()
    for other in others:
        other.run(settings)


def test_a_module_is_refused_to_others_in_its_backward_pass_too() -> None:
    model, batch = make()
    other = inference_job(model, batch[0])

    def run_other(_: Tensor) -> None:
        other.run(AS_IT_IS)

    def hooked(model: nn.Module, *batch: Tensor) -> Tensor:
        mean = loss(model, *batch)
        mean.register_hook(run_other)
        return mean

    with pytest.raises(UsageError, match="Net: runs in another ladder"):
        training_job(model, hooked, batch).run(AS_IT_IS)
    other.run(AS_IT_IS)  # which the failure of the other has not left refused


def test_two_managers_in_two_threads_keep_apart() -> None:
    found: dict[int, JobOutcome[Tensor]] = {}

    def work(at_once: int) -> None:
        settings = Settings(checkpoint_every=1, micro_batch=at_once)
        with SimulatedDevice(ROOMY) as device:
            model, batch = make()
            job = training_job(model, loss, batch, count)
            calls: list[Settings] = []

            def run(asked: Settings) -> Tensor:
                calls.append(asked)
                if asked != settings:
                    raise out_of_memory()
                return job.run(asked)

            found[at_once] = managed(device).run(replace(job, run=run))

    threads = [threading.Thread(target=work, args=(at_once,)) for at_once in (4, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {at_once: o.settings.micro_batch for at_once, o in found.items()} == {4: 4, 1: 1}
    assert [len(found[at_once].ladder.steps) for at_once in (4, 1)] == [6, 8]


def test_what_a_failed_try_began_ends_before_anything_is_put_back() -> None:
    """On a stream of its own it may still write into buffers."""
    order: list[str] = []

    class Watched(SimulatedDevice):
        def synchronize(self) -> None:
            order.append("synchronize")

        def empty_cache(self) -> None:
            order.append("empty cache")
            super().empty_cache()

    job, _ = failing(out_of_memory, 1)
    with Watched(ROOMY) as device:
        managed(device).run(replace(job, undo=lambda: order.append("undo")))
    assert order == ["synchronize", "undo", "empty cache"]


@pytest.fixture
def capped_case() -> Iterator[tuple[Net, Batch, Job[Tensor]]]:
    """On a GPU, a case under a cap between what the whole step needs and what the last rung needs.

    The case has run both ways before, so that libraries have their workspaces.
    """
    from tests.measure.on_gpu import capped, case, peak_of

    model, batch = case()
    job = training_job(model, loss, batch, count)
    needs = []
    for settings in (AS_IT_IS, Settings(checkpoint_every=1, micro_batch=1)):
        needs.append(peak_of(lambda settings=settings: job.run(settings)))
        job.undo()
    gc.collect()
    torch.cuda.empty_cache()
    with capped((needs[0] + 2 * needs[1]) // 3):
        yield model, batch, job


@pytest.mark.gpu
def test_on_a_gpu_a_step_that_a_cap_forbids_is_cured_and_keeps_nothing(
    capped_case: tuple[Net, Batch, Job[Tensor]],
) -> None:
    model, _, job = capped_case
    base, bases = torch.cuda.memory_allocated(), []
    with pytest.raises(torch.OutOfMemoryError):
        job.run(AS_IT_IS)
    job.undo()

    def run(settings: Settings) -> Tensor:
        bases.append(torch.cuda.memory_allocated())
        return job.run(settings)

    manager = MemoryManager(budget_gb=80, headroom_gb=0)
    manager.clear_cache()
    with without_automatic_collection():
        outcome = manager.run(replace(job, run=run))
    assert outcome.settings != AS_IT_IS
    assert outcome.ladder.kind == CudaDevice(0).kind
    assert bases == [base] * len(outcome.ladder.steps)
    del outcome
    model.zero_grad(set_to_none=True)
    assert torch.cuda.memory_allocated() == base


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["backward", "hook", "side stream"])
def test_on_a_gpu_memory_that_runs_out_elsewhere_is_let_go(where: str) -> None:
    """In the thread of the backward pass, in a hook there, on a stream that a tensor waits for."""
    from tests.measure.on_gpu import case, spill

    model, batch = case()
    tries: list[int] = []

    def failing_loss(model: nn.Module, *batch: Tensor) -> Tensor:
        mean = loss(model, *batch)
        return spill(mean, where) if len(tries) in (1, 2) else mean

    job = training_job(model, failing_loss, batch, count)
    job.run(AS_IT_IS)
    job.undo()

    def run(settings: Settings) -> Tensor:
        tries.append(torch.cuda.memory_allocated())
        return job.run(settings)

    with without_automatic_collection():
        MemoryManager(budget_gb=80, headroom_gb=0).run(replace(job, run=run))
    assert len(tries) == 3
    assert len(set(tries)) == 1


@pytest.mark.gpu
@pytest.mark.computes
def test_on_a_gpu_gradients_of_a_cured_step_are_those_of_the_uncapped_one(
    capped_case: tuple[Net, Batch, Job[Tensor]],
) -> None:
    from tests.measure.on_gpu import case

    model, _, job = capped_case
    MemoryManager(budget_gb=80, headroom_gb=0).run(job)
    got = [gradient.cpu() for gradient in gradients(model)]
    job.undo()
    torch.cuda.set_per_process_memory_fraction(1.0)
    own, batch = case()
    loss(own, *batch).backward()
    for cured, wanted in zip(got, gradients(own), strict=True):
        torch.testing.assert_close(cured, wanted.cpu(), rtol=1e-3, atol=1e-5)
