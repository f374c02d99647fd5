"""Frozen vision towers whose patch embeddings come before the prompt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTower:
    """A vision transformer with a pooling head, and its projection to the language model.

    Attributes:
        patches: of an image: tokens that it puts before the prompt.
        pixels: numbers of one image.
    """

    name: str
    width: int
    layers: int
    inner: int
    patches: int
    pixels: int

    def parameters(self, hidden: int) -> int:
        """Of the tower with its pooling head, and of the projection to `hidden` channels."""
        width, inner = self.width, self.inner
        mlp = 2 * width * inner + inner + width
        square = width * width + width
        layer = 4 * square + mlp + 4 * width
        embedding = square + self.patches * width
        head = width + 4 * square + 2 * width + mlp
        projection = width * hidden + hidden
        return embedding + self.layers * layer + 2 * width + head + projection

    @property
    def highest_elements(self) -> int:
        """Numbers alive at the tower's highest moment, in its MLP, for each image.

        The image; the residual before and after attention, and its norm; both inner tensors.
        """
        return self.pixels + self.patches * (3 * self.width + 2 * self.inner)


VISION_TOWERS = {
    tower.name: tower
    for tower in (
        VisionTower(
            name="siglip-base", width=768, layers=12, inner=3072, patches=196, pixels=3 * 224 * 224
        ),
    )
}
"""SigLIP-B/16 at 224 pixels: Zhai et al., arXiv:2303.15343."""
