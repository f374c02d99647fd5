"""What a named model takes at least (`tritter-mem.model/1`): its weights and its cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "tritter-mem.model/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastMemory:
    """A model that is named: what of it is known before it runs.

    What runs takes more: activations, logits, workspaces and what the allocator rounds up are not
    in it. So it says that something does not fit, and never that it does.

    Attributes:
        name: as it was given.
        architecture: its `model_type`.
        parameters: all that a checkpoint holds.
        language_parameters: of the language model as transformers builds it.
        active_parameters: of these, what one token passes through.
        weight_bytes: of the language model, as it is stored.
        stored_bytes: of all tensors, as the files' headers have them, where there are files.
        kv_bytes_per_token: of the layers whose cache grows.
        kv_cache_bytes: of the whole cache, as transformers' DynamicCache holds it.
        cache_dtype: in which the cache is stored.
        context: tokens of each sequence.
        batch: sequences.
        gpu: the card.
        context_bytes: its CUDA context.
        budget_bytes: what may be used of it.
        unsupported: what of the model is not counted, in one sentence each.
    """

    name: str
    architecture: str
    parameters: int
    language_parameters: int
    active_parameters: int
    weight_bytes: int
    stored_bytes: int | None
    kv_bytes_per_token: int
    kv_cache_bytes: int
    cache_dtype: str
    context: int
    batch: int
    gpu: str
    context_bytes: int
    budget_bytes: int
    unsupported: tuple[str, ...] = ()
    schema: str = field(default=SCHEMA)

    @property
    def total_bytes(self) -> int:
        """Weights, cache and CUDA context."""
        return self.weight_bytes + self.kv_cache_bytes + self.context_bytes

    @property
    def exceeds_budget(self) -> bool:
        """Whether it surely does not fit."""
        return self.total_bytes > self.budget_bytes

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints, with `schema` first."""
        record = asdict(self)
        return {
            "schema": record.pop("schema"),
            **record,
            "total_bytes": self.total_bytes,
            "exceeds_budget": self.exceeds_budget,
        }
