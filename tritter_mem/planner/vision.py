"""The vision tower: SigLIP-B/16, frozen, whose patch embeddings come before the prompt."""

from __future__ import annotations

from collections.abc import Iterator

from tritter_mem.config.profile import VISION_PREFIX_TOKENS, Profile
from tritter_mem.planner.moments import (
    DTYPE_BYTES,
    Moment,
    activation_bytes,
    compute_dtype,
    sizes_of,
)

WIDTH, LAYERS, INNER = 768, 12, 3072
PATCHES, PIXELS = 196, 3 * 224 * 224


def vision_parameters(profile: Profile) -> int:
    """Parameters of SigLIP-B/16 with its pooling head, and of the projection; 0 without one."""
    if profile.model.vision is None:
        return 0
    hidden = profile.model.hidden_size
    mlp = 2 * WIDTH * INNER + INNER + WIDTH
    square = WIDTH * WIDTH + WIDTH
    layer = 4 * square + mlp + 4 * WIDTH
    embedding = square + PATCHES * WIDTH
    head = WIDTH + 4 * square + 2 * WIDTH + mlp
    projection = WIDTH * hidden + hidden
    return embedding + LAYERS * layer + 2 * WIDTH + head + projection


def vision_bytes(profile: Profile) -> int:
    """The tower and its projection, in the activations' type."""
    return vision_parameters(profile) * DTYPE_BYTES[compute_dtype(profile)]


def prefix_bytes(profile: Profile) -> int:
    """Patch embeddings in the language model's width; 0 without a tower."""
    if profile.model.vision is None:
        return 0
    sizes = sizes_of(profile, VISION_PREFIX_TOKENS[profile.model.vision])
    return activation_bytes(sizes, sizes.hidden)


def vision_moments(profile: Profile, phase: str) -> Iterator[Moment]:
    """The tower's highest moment, in its MLP.

    Images; the residual before and after attention, its norm; both inner tensors.
    """
    if profile.model.vision is None:
        return
    image = PIXELS + PATCHES * (3 * WIDTH + 2 * INNER)
    width = DTYPE_BYTES[compute_dtype(profile)] * profile.workload.batch
    yield Moment(phase, "vision tower", {"activations": width * image})
