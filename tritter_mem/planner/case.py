"""What is planned, put together once: the model, how it is stored, the work, and the card."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Profile, Training, Workload
from tritter_mem.models.architecture import Architecture, Cache, Rows
from tritter_mem.models.bundled import architecture_of
from tritter_mem.models.formats import StorageFormat, compute_format, storage_format


@dataclass(frozen=True, kw_only=True)
class Case:
    """One plan's subject.

    Attributes:
        weights: storage of the linear layers.
        embeddings: storage of the embedding and the output projection.
        compute: storage of activations.
        master: storage of trained weights and of their gradients.
        cache: the key-value cache, which training does not have.
        allocator_conf: settings as in `PYTORCH_CUDA_ALLOC_CONF`.
    """

    architecture: Architecture
    weights: StorageFormat
    embeddings: StorageFormat
    compute: StorageFormat
    master: StorageFormat
    cache: Cache
    work: Workload
    training: Training
    card: GpuCard
    allocator_conf: str = ""

    @classmethod
    def of(cls, profile: Profile, card: GpuCard) -> Case:
        """A profile on a card."""
        weights = storage_format(profile.weights.format)
        compute = compute_format(weights)
        return cls(
            architecture=architecture_of(profile.model),
            weights=weights,
            embeddings=storage_format(profile.weights.embedding_dtype),
            compute=compute,
            master=storage_format(profile.training.master_dtype),
            cache=Cache(
                format=storage_format(profile.kv_cache.dtype),
                compute=compute,
                group=profile.kv_cache.group_size,
                sinks=profile.kv_cache.attention_sinks,
                context=profile.workload.context,
                batch=profile.workload.batch,
            ),
            work=profile.workload,
            training=profile.training,
            card=card,
            allocator_conf=profile.allocator.conf,
        )

    @property
    def trains(self) -> bool:
        """Whether the case is a training step."""
        return self.work.mode == "training"

    @property
    def captures(self) -> bool:
        """Whether decode replays a CUDA graph of its step."""
        return self.work.cuda_graph and self.work.new_tokens > 1

    @property
    def logits_format(self) -> StorageFormat:
        """Storage of logits: the projection's; that of an int8 one gives the activations'."""
        return self.embeddings if self.embeddings.is_float else self.compute

    def rows(self, tokens_of_a_sequence: int) -> Rows:
        """So many tokens of each sequence, that run at once."""
        return Rows(
            tokens=self.work.batch * tokens_of_a_sequence,
            batch=self.work.batch,
            hidden=self.architecture.hidden,
            weights=self.weights,
            compute=self.compute,
            master=self.master,
        )
