"""SigLIP-B/16: the frozen vision tower whose patch embeddings come before the prompt.

224 x 224 pixels in patches of 16: 196 tokens of width 768, 12 layers, and the pooling head that the
published checkpoint has: 92.9 M parameters. A projection takes the patches to the language model's
width.

Shapes: B images, P = 196 patches, W = 768.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own name for it)
from torch import Tensor, nn

from tritter_model.initialise import fill_normal
from tritter_model.labels import VISION, label
from tritter_model.ops.attention import Mask, attention
from tritter_model.ops.layer_norm import layer_norm

WIDTH, LAYERS, HEADS, INNER = 768, 12, 12, 3072
IMAGE, PATCH = 224, 16
PATCHES = (IMAGE // PATCH) ** 2


class Affine(nn.Module):
    """x @ weightᵀ + bias, frozen."""

    def __init__(self, inputs: int, outputs: int, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(like.new_empty(outputs, inputs), requires_grad=False)
        self.bias = nn.Parameter(like.new_empty(outputs), requires_grad=False)

    def reset(self, generator: torch.Generator) -> None:
        """Normal weights of variance 1 / inputs, no bias."""
        fill_normal(self.weight, generator, self.weight.shape[1] ** -0.5)
        self.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[rows, outputs]."""
        return torch.addmm(self.bias, x, self.weight.t())


class LayerNorm(nn.Module):
    """Layer normalisation, frozen."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(like.new_empty(WIDTH), requires_grad=False)
        self.bias = nn.Parameter(like.new_empty(WIDTH), requires_grad=False)

    def reset(self, generator: torch.Generator) -> None:
        """The identity."""
        del generator
        self.weight.data.fill_(1)
        self.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[rows, W]."""
        return layer_norm(x, self.weight, self.bias, 1e-6)


class VisionMLP(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.fc1, self.fc2 = Affine(WIDTH, INNER, like), Affine(INNER, WIDTH, like)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, W]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


class VisionLayer(nn.Module):
    """Attention and MLP, each behind a layer norm."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(like), LayerNorm(like)
        self.qkv, self.out = Affine(WIDTH, 3 * WIDTH, like), Affine(WIDTH, WIDTH, like)
        self.mlp = VisionMLP(like)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """[B * P, W]."""
        x = x + self.out(self.mixed(x, batch))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def mixed(self, x: Tensor, batch: int) -> Tensor:
        """Attention among the patches of each image: [B * P, W]."""
        qkv = self.qkv(self.norm1(x)).view(x.shape[0], 3 * HEADS, WIDTH // HEADS)
        q, k, v = qkv.split(HEADS, 1)
        return attention(q, k, v, batch, Mask(causal=False))[0]


class PoolingHead(nn.Module):
    """One learned query over all patches: SigLIP's image embedding, part of its checkpoint."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.probe = nn.Parameter(like.new_empty(1, WIDTH), requires_grad=False)
        self.query, self.key_value = Affine(WIDTH, WIDTH, like), Affine(WIDTH, 2 * WIDTH, like)
        self.out, self.norm, self.mlp = Affine(WIDTH, WIDTH, like), LayerNorm(like), VisionMLP(like)

    def reset(self, generator: torch.Generator) -> None:
        """A normal probe."""
        fill_normal(self.probe, generator, WIDTH**-0.5)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """[B, W] of patches [B * P, W]."""
        shape = (x.shape[0], HEADS, WIDTH // HEADS)
        q = self.query(self.probe).view(1, *shape[1:]).expand(*shape)
        k, v = self.key_value(x).view(x.shape[0], 2 * HEADS, shape[2]).split(HEADS, 1)
        pooled = attention(q, k, v, batch, Mask(causal=False))[0][:: x.shape[0] // batch]
        pooled = self.out(pooled)
        return pooled + self.mlp(self.norm(pooled))  # type: ignore[no-any-return]


class VisionTower(nn.Module):
    """SigLIP-B/16 and the projection to the language model's width, frozen.

    Args:
        hidden_size: width of the language model.
        dtype: type of the weights and the activations.
        device: where it lives.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        like = torch.empty(0, dtype=dtype, device=device)
        with label(VISION):
            self.patch = Affine(3 * PATCH * PATCH, WIDTH, like)
            self.position = nn.Parameter(like.new_empty(PATCHES, WIDTH), requires_grad=False)
            self.layers = nn.ModuleList(VisionLayer(like) for _ in range(LAYERS))
            self.norm = LayerNorm(like)
            self.head = PoolingHead(like)
            self.projection = Affine(WIDTH, hidden_size, like)

    def reset(self, generator: torch.Generator) -> None:
        """Small normal positions."""
        fill_normal(self.position, generator, 0.02)

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:
        """Normalised patch features [B * P, W] of images [B, 3, 224, 224]."""
        side = IMAGE // PATCH
        pixels = images.view(-1, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 1, 3, 5)
        x: Tensor = self.patch(pixels.reshape(-1, 3 * PATCH * PATCH))
        x.view(-1, PATCHES, WIDTH).add_(self.position)
        for layer in self.layers:
            x = layer(x, images.shape[0])
        return self.norm(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def pooled(self, images: Tensor) -> Tensor:
        """One embedding an image: [B, W]."""
        return self.head(self.patches(images), images.shape[0])  # type: ignore[no-any-return]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Prefix [B, P, hidden_size]."""
        return self.projection(self.patches(images)).unflatten(0, (-1, PATCHES))  # type: ignore[no-any-return]
