"""Every checkpointing policy measured, each in a process of its own, beside what was simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Profile, changed
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.measure import runs
from tritter_mem.measure.target import Where
from tritter_mem.models.bundled import run_settings
from tritter_mem.results.run import CheckpointCase, OutOfMemory
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.simulate import PhaseHook, both, bundled_workload, simulate_workload
from tritter_mem.units import format_bytes
from tritter_model.kv_cache import LayerCache

Cases = tuple[CheckpointCase, ...]


def measured_trade_off(
    profile: Profile, cases: Sequence[CheckpointCase], where: Where, progress: Progress
) -> Iterator[tuple[Cases, Sequence[str]]]:
    """Measure a training step under each policy, one after another; nothing where nothing can be.

    One that fails does not end the others. A budget caps each, as it caps the profile's own run.

    Args:
        profile: a resolved training profile; its own policy does not matter.
        cases: what was simulated.
        where: the device, and the card to run as on.
        progress: told which one runs.

    Yields:
        After each policy all cases, with what is measured so far, and what went wrong with this.
    """
    found = list(cases)
    for number, case in enumerate(cases if where.target else ()):
        name = f"{case.policy}:{case.n}" if case.n > 1 else case.policy
        progress.begin(f"{profile.name}, {name}: measuring")
        found[number] = measured = _measured(profile, case, where)
        failed = measured.measured_allocated_peak_bytes is None
        yield tuple(found), [f"{name}: {measured.measured_reason}"] if failed else []


def _measured(profile: Profile, case: CheckpointCase, where: Where) -> CheckpointCase:
    if where.target is None:
        return case
    own = changed(profile, {"training.checkpointing": {"policy": case.policy, "n": case.n}})
    try:
        estimate = runs.measure_once(run_settings(own, where.simulated), where.target)
    except MeasureError as error:
        return replace(case, measured_reason=str(error))
    refused = estimate.out_of_memory
    return replace(
        case,
        measured_allocated_peak_bytes=estimate.allocated_peak_bytes,
        measured_reserved_peak_bytes=estimate.reserved_peak_bytes,
        measured_seconds=None if refused else runs.seconds_of(estimate),
        measured_reason=_sentence(refused) if refused else None,
    )


def _sentence(refused: OutOfMemory) -> str:
    return (
        f"out of memory in {refused.phase or 'no phase'}: "
        f"{format_bytes(refused.requested_bytes)} more than {format_bytes(refused.reserved_bytes)} "
        f"reserved, of {format_bytes(refused.limit_bytes)}"
    )


POLICIES = (
    ("none", 1), ("every-layer", 1),
    ("every-nth", 2), ("every-nth", 4), ("every-nth", 8),
    ("segments", 2), ("segments", 4), ("segments", 8),
    ("selective-attention", 1), ("selective-matmul", 1),
)  # fmt: skip
"""The policies that are compared, with their n; the first is what the others are held against."""


def checkpointing_trade_off(
    profile: Profile, progress: Progress | None = None, card: GpuCard | None = None
) -> tuple[CheckpointCase, ...]:
    """Simulate a training step under every policy, and count its operations.

    Policies over more layers than the model has are left out.

    Args:
        profile: a resolved training profile; its own policy does not matter.
        progress: told how far each simulation is.
        card: the card to stand for, where it is not the profile's.

    Raises:
        UsageError: the profile is no training.
    """
    if profile.workload.mode != "training":
        raise UsageError(
            f"{profile.name}: found workload.mode {profile.workload.mode}; checkpointing is of "
            "training: add --mode training"
        )
    layers = profile.model.num_hidden_layers
    told = progress or Progress()
    fitting = [(policy, n) for policy, n in POLICIES if n <= layers]
    cases = [simulate_policy(profile, policy, n, told, card) for policy, n in fitting]
    base = cases[0].flops
    return mark_front(replace(case, recomputed_flops=case.flops - base) for case in cases)


def simulate_policy(
    profile: Profile, policy: str, n: int, progress: Progress, card: GpuCard | None = None
) -> CheckpointCase:
    """Simulate a training step under one policy, and count its operations."""
    progress.begin(f"{profile.name}, {policy}" + (f" {n}" if n > 1 else ""))
    card, counter = card or find_gpu(profile.gpu.name), FlopCounter()
    checkpointing = {"policy": policy, "n": n}
    case = bundled_workload(
        changed(profile, {"training.checkpointing": checkpointing}), card, progress
    )

    def counted(device: str, phase: PhaseHook) -> None:
        case(device, both(counter.phase, phase))

    with counter:  # outside the recorder, which takes composite operators apart
        estimate = simulate_workload(counted, card, profile.allocator.conf)
    return CheckpointCase(
        policy=policy,
        n=n,
        allocated_peak_bytes=estimate.allocated_peak_bytes,
        reserved_peak_bytes=estimate.reserved_peak_bytes or 0,
        activations_peak_bytes=max(
            phase.components.activations_bytes for phase in estimate.phases if phase.components
        ),
        flops=counter.by_phase["forward"] + counter.by_phase["backward"],
    )


def mark_front(cases: Iterable[CheckpointCase]) -> tuple[CheckpointCase, ...]:
    """Mark the Pareto front: cases that no other beats in memory or work without being worse."""
    found = tuple(cases)
    return tuple(replace(case, on_front=not _beaten(case, found)) for case in found)


def _beaten(case: CheckpointCase, by: Sequence[CheckpointCase]) -> bool:
    own = (case.allocated_peak_bytes, case.flops)
    return any(
        (other.allocated_peak_bytes, other.flops) != own
        and other.allocated_peak_bytes <= own[0]
        and other.flops <= own[1]
        for other in by
    )


Count = Callable[..., int]


class FlopCounter(TorchDispatchMode):
    """Counts operations while it is entered.

    Attributes:
        by_phase: operations of each phase that was entered, and of what lies outside of any under
            the empty name.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_phase: dict[str, int] = {}
        self._phase = ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `operators.OperatorMode`

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (found := _operations(func, args, kwargs, result)) != 0:
            self.by_phase[self._phase] = self.by_phase.get(self._phase, 0) + found
        return result

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what runs inside to a phase."""
        outer, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = outer


def _operations(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    if func.namespace == "tritter":
        count = OPERATIONS.get(func.overloadpacket.__name__)
        return 0 if count is None else count(*args)
    formula = flop_registry.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def visible_pairs(queries: int, position: int, causal: bool, window: int, sinks: int) -> int:
    """Query-key pairs of one sequence that a mask lets through.

    Args:
        queries: how many there are; the keys are those before them and their own.
        position: of the first query.
        causal: whether a query sees only the keys up to its own; else it sees all.
        window: how many keys, up to its own, a causal query sees; 0: all.
        sinks: first keys, which are seen beside the window.
    """
    end = position + queries
    if not causal:
        return queries * end
    seen = _sum_up_to(end) - _sum_up_to(position)
    if not window:
        return seen
    reach = window + sinks
    return seen - (_sum_up_to(end - reach) - _sum_up_to(position - reach))


def _sum_up_to(n: int) -> int:
    """1 + 2 + ... + n; 0 where n is negative."""
    return n * (n + 1) // 2 if n > 0 else 0


def _attention(products: int, q: Tensor, batch: int, *mask: Any) -> int:
    """So many products of head_dim multiply-adds for each visible pair and query head."""
    pairs = batch * visible_pairs(q.shape[0] // batch, 0, *mask)
    return 2 * products * q.shape[1] * q.shape[2] * pairs


def _cached_attention(
    qkv: Tensor, tensors: list[Tensor], layout: list[int], position: int, heads: int, *_: Any
) -> int:
    cache = LayerCache.of(tensors, layout)
    queries = qkv.shape[0] // cache.batch
    pairs = visible_pairs(queries, position, True, cache.window, cache.sinks)
    return 4 * cache.batch * heads * qkv.shape[2] * pairs


OPERATIONS: dict[str, Count] = {
    "ternary_linear": lambda codes, *rest: 2 * codes.numel() * rest[-1].shape[1],
    "ternary_grad_input": lambda grad, *rest: 2 * grad.numel() * rest[-1].shape[1],
    "grad_weight": lambda grad, x, *_: 2 * grad.numel() * x.shape[1],
    "attention": lambda q, k, v, *mask: _attention(2, q, *mask[:4]),
    # The scores again, and one product for each of the gradients of values, weights, keys, queries.
    "attention_backward": lambda grad, q, k, v, out, lse, *mask: _attention(5, q, *mask[:4]),
    "prefill_attention": _cached_attention,
    "decode_attention": _cached_attention,
}
"""What operators of the bundled model count, from their arguments; the others have no product."""
