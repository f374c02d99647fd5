"""What to change so that a profile fits: each suggestion is itself planned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import IntEnum
from itertools import islice
from typing import Any, NamedTuple

from tritter_mem.config.cards import GpuCard, all_cards
from tritter_mem.config.named_profile import AnyProfile, NamedProfile
from tritter_mem.config.profile import Profile, changed
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import ConfigError
from tritter_mem.models.formats import Use, formats_for, storage_format
from tritter_mem.planner.compose import plan
from tritter_mem.planner.least import least_memory
from tritter_mem.planner.solve import smallest, solve_roughly
from tritter_mem.results.largest import Unknown
from tritter_mem.results.run import Kind, MemoryUse, Suggestion, Verdict
from tritter_mem.results.verdict import judge
from tritter_mem.units import MiB, format_count

WORTH_BYTES = 64 * MiB
"""A change that saves less is not worth a line."""
UNKNOWNS: tuple[Unknown, ...] = ("batch", "context")
MOST = 8
CARDS = 4
"""So many cards are named."""
HOPELESS = 2
"""Where all changes together need more budgets than this, none is named."""
WORTH_SHARE = 10
"""A change that is not enough is named where it saves one part in so many of what is missing."""
BETWEEN = " + "
EXPANDABLE = "expandable_segments:True"


class Cost(IntEnum):
    """What a change gives up."""

    TIME = 0
    LITTLE = 1
    QUALITY = 2
    ANOTHER_RESULT = 3


class Change(NamedTuple):
    """Settings by dotted key, and what to call them: what is given up is part of the name."""

    text: str
    settings: dict[str, Any]
    cost: Cost = Cost.TIME


def suggest(
    profile: AnyProfile, card: GpuCard, budget_bytes: int, planned: MemoryUse | None = None
) -> tuple[Suggestion, ...]:
    """Changes that save memory, those that make the profile fit first; none where it fits.

    They are in the order of what they give up, and then of what they save. Where not even all of
    them leave twice the budget, none is named.

    A plan that is a lower bound has none: what it says of a change would not hold either.

    Where no single change is enough, the largest savings are put together until they are; where all
    of them are not, the largest context and batch that fit with them are named.

    Args:
        profile: what does not fit.
        card: the card that it is planned for.
        budget_bytes: what may be used.
        planned: the profile's plan, where it has been made.
    """
    use = planned or plan(profile, card)
    need = use.footprint_bytes
    if need <= budget_bytes or use.lower_bound_reason is not None:
        return ()
    case = _Case(profile, card, budget_bytes, use)
    changes = list(_in_order(_changes(profile, use)))
    if case.least_bytes(_most(changes)) > HOPELESS * budget_bytes:
        return ()
    single = case.each(changes)
    bases = [Change("", {})]
    if not any(found.fits and change.cost is Cost.TIME for change, found in single):
        bases.append(_laid_over(_of_time(changes)))
    enough = [found for _, found in single if found.fits]
    if not enough:
        laid, found = case.together(changes, single)
        enough = case.worth_naming(single) if found is None else [found]
        bases += [laid] if found is None else []
    limits = list(case.largest(bases))
    return (*enough[: MOST - len(limits)], *limits)


def judge_with_advice(
    profile: AnyProfile, card: GpuCard, uses: dict[Kind, MemoryUse], budget_bytes: int
) -> Verdict | None:
    """The verdict on a profile, with what to change and which cards would hold it as it is.

    Args:
        profile: what the answers are for.
        card: the card that it is planned for.
        uses: the kinds of answer, the plan among them; the best one decides.
        budget_bytes: what may be used.
    """
    planned = uses["planned"]
    verdict = judge(uses, budget_bytes, suggest(profile, card, budget_bytes, planned))
    if verdict is None or verdict.fits or planned.lower_bound_reason is not None:
        return verdict
    need = verdict.budget_bytes - verdict.headroom_bytes
    return replace(verdict, cards=cards_that_fit(profile, need))


def cards_that_fit(profile: AnyProfile, need_bytes: int) -> tuple[str, ...]:
    """The smallest cards of the same vendor that hold a profile as it is, each by its own plan.

    Args:
        profile: what is planned; its own budget is not looked at.
        need_bytes: what it needs on its card. Cards of less memory are not planned.

    Returns:
        Up to four names.
    """
    vendor = find_gpu(profile.gpu.name).vendor
    cards = [card for card in all_cards() if card.vendor == vendor]
    large = [card for card in cards if card.default_budget_bytes >= need_bytes]
    large.sort(key=lambda card: (card.default_budget_bytes, card.name))
    fits = (
        card.name
        for card in large
        if plan(profile, card).footprint_bytes <= card.default_budget_bytes
    )
    return tuple(islice(fits, CARDS))


class _Case(NamedTuple):
    profile: AnyProfile
    card: GpuCard
    budget_bytes: int
    use: MemoryUse

    @property
    def need_bytes(self) -> int:
        """What the profile needs as it is."""
        return self.use.footprint_bytes

    def least_bytes(self, change: Change) -> int:
        """A lower bound of what a change needs, from a formula; 0 if it has no formula."""
        if not isinstance(self.profile, NamedProfile):
            return 0
        from tritter_mem.models.transformers_run import transformers_run

        try:
            run = transformers_run(changed(self.profile, change.settings))
        except ConfigError:
            return 0
        return least_memory(run, self.card, "").footprint_bytes

    def each(self, changes: Iterable[Change]) -> list[tuple[Change, Suggestion]]:
        """Judge each change alone; in the order of what they give up, and then of what they save.

        Where one is enough, those behind it that set the same at the same cost are left out, and
        those that set more or less. So is what costs time alone and cannot be enough alone.

        Args:
            changes: in the order of what they give up.
        """
        found: list[tuple[Change, Suggestion]] = []
        for change in changes:
            if any(_covers(change, other) and judged.fits for other, judged in found):
                continue
            if change.cost is Cost.TIME and self.least_bytes(change) > self.budget_bytes:
                continue
            if (judged := self.judge(change)) is not None:
                found.append((change, judged))
        return sorted(found, key=lambda pair: (pair[0].cost, -pair[1].saves_bytes))

    def worth_naming(self, single: Iterable[tuple[Change, Suggestion]]) -> list[Suggestion]:
        """Changes that are not enough, but save a good part of what is missing.

        Of those that set the same at the same cost, or a part of it, the one that saves the most.
        """
        missing = self.need_bytes - self.budget_bytes
        named: list[tuple[Change, Suggestion]] = []
        for change, judged in single:
            if judged.saves_bytes * WORTH_SHARE < missing:
                continue
            if not any(_covers(change, other) for other, _ in named):
                named.append((change, judged))
        return [judged for _, judged in named]

    def judge(self, change: Change, use: MemoryUse | None = None) -> Suggestion | None:
        """Plan a change; None where it is not possible or saves next to nothing.

        Args:
            change: what is set.
            use: its plan, where it has been made.
        """
        try:
            use = use or plan(changed(self.profile, change.settings), self.card)
        except ConfigError:  # a rule between settings forbids this one here
            return None
        need = use.footprint_bytes
        if self.need_bytes - need < WORTH_BYTES or use.lower_bound_reason is not None:
            return None
        headroom = self.budget_bytes - need
        return Suggestion(
            text=change.text,
            settings=change.settings,
            saves_bytes=self.need_bytes - need,
            fits=headroom >= 0,
            headroom_bytes=headroom,
        )

    def largest(self, bases: Sequence[Change]) -> Iterator[Suggestion]:
        """The largest batch and context that fit, over each of several changes.

        Args:
            bases: nothing changed comes first; other changes that set nothing are left out.
        """
        for base in (*bases[:1], *(base for base in bases[1:] if base.settings)):
            profile = changed(self.profile, base.settings)
            for unknown in UNKNOWNS:
                now = getattr(self.profile.workload, unknown)  # which does not fit
                if f"workload.{unknown}" in base.settings or now <= smallest(profile, unknown):
                    continue
                found = solve_roughly(profile, self.card, self.budget_bytes, unknown, now)
                if found is None:
                    continue
                value, use = found
                if value >= now:
                    continue
                about = "about " if unknown == "context" else ""
                text = f"{unknown} {format_count(value)}, {about}the largest that fits"
                change = _laid_over([base, Change(text, {f"workload.{unknown}": value})])
                if (judged := self.judge(change, use)) is not None:
                    yield judged

    def together(
        self, changes: Iterable[Change], single: Iterable[tuple[Change, Suggestion]]
    ) -> tuple[Change, Suggestion | None]:
        """Lay changes over each other, cheapest first, until the profile fits.

        Of changes that set the same, the one that saves the most takes the place of the others.
        Those that cannot be enough alone, and were not judged, come last.

        Returns:
            The changes laid over each other, and what they make; None where they are not enough.
        """
        saves = {change.text: judged.saves_bytes for change, judged in single}
        rest = [change for change in changes if change.text not in saves]
        laid: list[Change] = []
        for change in (*(change for change, _ in single), *rest):
            same = [other for other in laid if other.settings.keys() & change.settings.keys()]
            if any(saves.get(other.text, 0) >= saves.get(change.text, 0) for other in same):
                continue
            laid = [*(other for other in laid if other not in same), change]
            both = _laid_over(laid)
            if self.least_bytes(both) <= self.budget_bytes:
                found = self.judge(both)
                if found and found.fits:
                    return both, found
        return _laid_over(laid), None


def _covers(change: Change, other: Change) -> bool:
    """Whether two changes set the same and give up as much; if time alone, one may set more."""
    one, two = change.settings.keys(), other.settings.keys()
    if change.cost is not other.cost:
        return False
    return one == two or (change.cost is Cost.TIME and (one <= two or two <= one))


def _of_time(changes: Iterable[Change]) -> Iterator[Change]:
    return (change for change in changes if change.cost is Cost.TIME)


def _in_order(changes: Iterable[Change]) -> Iterator[Change]:
    """Changes in the order of what they give up.

    Those that cost time alone come together too, and then with a further step of one of them.
    """
    given = sorted(changes, key=lambda change: change.cost)
    free = list(_of_time(given))
    parts = [
        change for change in free if _laid_over(free).settings.items() >= change.settings.items()
    ]
    yield from parts
    if len(parts) > 1:
        yield _laid_over(parts)
    for change in free:
        if change not in parts:
            yield _laid_over([*(part for part in parts if not _covers(part, change)), change])
    yield from (change for change in given if change not in free)


def _most(changes: Iterable[Change]) -> Change:
    """Changes laid over each other, of those that set the same the last one."""
    return _laid_over(reversed(list(changes)))


def _laid_over(changes: Iterable[Change]) -> Change:
    """Several changes as one; of two that set the same, the first counts."""
    settings: dict[str, Any] = {}
    texts, cost = [], Cost.TIME
    for change in changes:
        if not settings.keys() & change.settings.keys():
            settings |= change.settings
            texts.append(change.text)
            cost = max(cost, change.cost)
    return Change(BETWEEN.join(filter(None, texts)), settings, cost)


def _changes(profile: AnyProfile, use: MemoryUse) -> Iterator[Change]:
    unused = (use.reserved_peak_bytes or 0) - use.allocated_peak_bytes
    if unused >= WORTH_BYTES and not profile.allocator.conf:
        text = f"expandable segments (PYTORCH_CUDA_ALLOC_CONF={EXPANDABLE})"
        yield Change(text, {"allocator.conf": EXPANDABLE})
    if isinstance(profile, NamedProfile):
        yield from _named_changes(profile)
    elif profile.workload.mode == "training":
        yield from _training_changes(profile)
    else:
        yield from _cache_changes(profile)
        yield from _weight_changes(profile)
        yield Change("prefill in chunks of 512 tokens", {"workload.prefill_chunk": 512})


def _cache_changes(profile: Profile) -> Iterator[Change]:
    model, group = profile.model, max(1, profile.model.num_attention_heads // 4)
    if model.kv_heads > group and model.num_attention_heads % group == 0:
        text = f"{group} KV heads (needs a model trained that way)"
        yield Change(text, {"model.num_key_value_heads": group}, Cost.ANOTHER_RESULT)
    yield from _smaller("kv_cache", profile.kv_cache.dtype, "kv_cache.dtype", "KV cache")
    if model.sliding_window is None and profile.workload.context > 4096:
        window = {"model.sliding_window": 4096}
        yield Change(
            "4K window, every 4th layer global (needs a model trained that way)",
            {**window, "model.global_attention_every": 4},
            Cost.ANOTHER_RESULT,
        )
        text = "4K window and sinks (older tokens are ignored)"
        yield Change(text, window, Cost.ANOTHER_RESULT)


def _weight_changes(profile: Profile) -> Iterator[Change]:
    weights = profile.weights
    yield from _smaller("weights", weights.format, "weights.format", "weights")
    yield from _smaller(
        "embeddings", weights.embedding_dtype, "weights.embedding_dtype", "embeddings"
    )


def _smaller(use: Use, now: str, key: str, what: str) -> Iterator[Change]:
    """Formats of fewer bits than the one in use that are no floating-point type."""
    own = storage_format(now)
    for name in formats_for(use):
        other = storage_format(name)
        if other.is_float or other.bits >= own.bits:
            continue
        # What a ternary model costs has been paid already.
        caveat = "" if own.is_ternary and other.is_ternary else other.caveat(use)
        text = f"{other.label} {what}" + (f" ({caveat})" if caveat else "")
        yield Change(text, {key: name}, Cost.QUALITY if caveat else Cost.LITTLE)


def _named_changes(profile: NamedProfile) -> Iterator[Change]:
    """What transformers offers without another model."""
    from tritter_mem.models.transformers_run import transformers_run

    if profile.workload.mode == "training":
        every = {"training.checkpointing.policy": "every-layer"}
        yield Change("checkpoint every layer (computes the forward pass twice)", every)
        yield from _state_changes(profile)
        return
    if not transformers_run(profile).model.quantization.method:
        for name, (text, cost) in NAMED_STORAGE.items():
            yield Change(text, {"weights.quantization": name}, cost)
    # A 16th of the prompt takes little beside weights and cache, and is not much slower.
    most = 1 << max(profile.workload.context // 16, 2048).bit_length() - 1
    for chunk in (most, most // 4):
        text = f"prefill in chunks of {format_count(chunk)} tokens"
        yield Change(text, {"workload.prefill_chunk": chunk})


NAMED_STORAGE = {
    "bitsandbytes-int8": ("8-bit weights (LLM.int8 of bitsandbytes; costs little quality)",
                          Cost.LITTLE),
    "bitsandbytes-nf4": ("4-bit weights (NF4 of bitsandbytes; costs quality)", Cost.QUALITY),
    "bitsandbytes-nf4-double": (
        "4-bit weights with quantised scales (NF4 of bitsandbytes; costs quality)", Cost.QUALITY),
}  # fmt: skip


def _training_changes(profile: Profile) -> Iterator[Change]:
    policies = {
        "selective-attention": "checkpoint every layer, keep attention outputs",
        "every-layer": "checkpoint every layer",
    }
    for policy, text in policies.items():
        yield Change(text, {"training.checkpointing": {"policy": policy, "n": 1}})
    yield from _state_changes(profile)
    yield Change("loss in chunks of 512 tokens", {"training.loss_chunk": 512})


def _state_changes(profile: AnyProfile) -> Iterator[Change]:
    """Smaller trained weights, gradients and optimizer state, and fewer sequences at once."""
    yield Change("8-bit AdamW", {"training.optimizer": "adamw-8bit"}, Cost.LITTLE)
    text = "SGD without momentum (trains differently)"
    yield Change(text, {"training.optimizer": "sgd"}, Cost.ANOTHER_RESULT)
    text = "bfloat16 master weights and gradients (costs precision)"
    yield Change(text, {"training.master_dtype": "bfloat16"}, Cost.QUALITY)
    if profile.workload.batch > 1:
        yield Change("batch 1 with gradient accumulation", {"workload.batch": 1})
