"""What to change so that a profile fits: each suggestion is itself planned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.named_profile import AnyProfile, NamedProfile
from tritter_mem.config.profile import Profile, changed
from tritter_mem.errors import ConfigError
from tritter_mem.models.formats import Use, formats_for, storage_format
from tritter_mem.models.transformers_run import transformers_run
from tritter_mem.planner.compose import plan
from tritter_mem.planner.solve import Unknown, solve
from tritter_mem.results.run import Suggestion
from tritter_mem.units import MiB, format_count

WORTH_BYTES = 64 * MiB
"""A change that saves less is not worth a line."""
MOST = 8


class Change(NamedTuple):
    """Settings by dotted key, and what to call them: what is given up is part of the name."""

    text: str
    settings: dict[str, Any]


def suggest(profile: AnyProfile, card: GpuCard, budget_bytes: int) -> tuple[Suggestion, ...]:
    """Changes that save memory, those that make the profile fit first; none where it fits.

    A plan that is a lower bound has none: what it says of a change would not hold either.

    Where no single change is enough, the largest savings are put together until they are.
    """
    use = plan(profile, card)
    need = use.footprint_bytes
    if need <= budget_bytes or use.lower_bound_reason is not None:
        return ()
    case = _Case(profile, card, budget_bytes, need)
    single = [found for change in _changes(profile) if (found := case.judge(change))]
    limits = [found for change in case.largest() if (found := case.judge(change))]
    single.sort(key=lambda found: (not found.fits, -found.saves_bytes))
    if not any(found.fits for found in single):
        single = [*case.together(single), *single]
    else:
        single = [found for found in single if found.fits]
    return (*single[: MOST - len(limits)], *limits)


class _Case(NamedTuple):
    profile: AnyProfile
    card: GpuCard
    budget_bytes: int
    need_bytes: int

    def judge(self, change: Change) -> Suggestion | None:
        """Plan a change; None where it is not possible or saves next to nothing."""
        try:
            need = plan(changed(self.profile, change.settings), self.card).footprint_bytes
        except ConfigError:  # a rule between settings forbids this one here
            return None
        if self.need_bytes - need < WORTH_BYTES:
            return None
        headroom = self.budget_bytes - need
        return Suggestion(
            text=change.text,
            settings=change.settings,
            saves_bytes=self.need_bytes - need,
            fits=headroom >= 0,
            headroom_bytes=headroom,
        )

    def largest(self) -> Iterator[Change]:
        """The largest batch and the largest context that fit as all else stands."""
        unknowns: tuple[Unknown, ...] = ("batch", "context")
        for unknown in unknowns:
            now = getattr(self.profile.workload, unknown)  # which does not fit
            found = solve(self.profile, self.card, self.budget_bytes, unknown, most=now)
            if found is not None:
                text = f"{unknown} {format_count(found)}, the largest that fits"
                yield Change(text, {f"workload.{unknown}": found})

    def together(self, single: Iterable[Suggestion]) -> Iterator[Suggestion]:
        """Lay the largest savings over each other until the profile fits, if it ever does."""
        settings: dict[str, Any] = {}
        texts: list[str] = []
        for step in single:
            if settings.keys() & step.settings.keys():
                continue
            settings |= step.settings
            texts.append(step.text)
            found = self.judge(Change(" + ".join(texts), dict(settings)))
            if found and found.fits:
                yield found
                return


def _changes(profile: AnyProfile) -> Iterator[Change]:
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
        yield Change(
            f"{group} KV heads (needs a model trained so)", {"model.num_key_value_heads": group}
        )
    yield from _smaller("kv_cache", profile.kv_cache.dtype, "kv_cache.dtype", "KV cache")
    if model.sliding_window is None and profile.workload.context > 4096:
        window = {"model.sliding_window": 4096}
        yield Change(
            "4K window, every 4th layer global (needs a model trained so)",
            {**window, "model.global_attention_every": 4},
        )
        yield Change("4K window and sinks (older tokens are not attended to)", window)


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
        yield Change(f"{other.label} {what}" + (f" ({caveat})" if caveat else ""), {key: name})


def _named_changes(profile: NamedProfile) -> Iterator[Change]:
    """What transformers offers without another model."""
    if profile.workload.mode == "training":
        every = {"training.checkpointing.policy": "every-layer"}
        yield Change("checkpoint every layer (computes the forward pass twice)", every)
        yield from _state_changes(profile)
        return
    if not transformers_run(profile).model.quantization.method:
        for name, text in NAMED_STORAGE.items():
            yield Change(text, {"weights.quantization": name})
    for chunk in (2048, 512):
        text = f"prefill in chunks of {format_count(chunk)} tokens"
        yield Change(text, {"workload.prefill_chunk": chunk})


NAMED_STORAGE = {
    "bitsandbytes-int8": "8-bit weights (bitsandbytes LLM.int8; may cost quality)",
    "bitsandbytes-nf4": "4-bit weights (bitsandbytes NF4; costs quality)",
    "bitsandbytes-nf4-double": "4-bit weights, scales quantised too (bitsandbytes NF4; costs "
    "quality)",
}


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
    yield Change("8-bit AdamW", {"training.optimizer": "adamw-8bit"})
    yield Change("SGD without momentum (trains differently)", {"training.optimizer": "sgd"})
    yield Change("bfloat16 master weights and gradients (costs precision)", {
        "training.master_dtype": "bfloat16"})  # fmt: skip
    if profile.workload.batch > 1:
        yield Change("batch 1 with gradient accumulation", {"workload.batch": 1})
