"""The vision tower: SigLIP-B/16's architecture, and a prefix that is like any other tokens."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tritter_model import vision
from tritter_model.config import ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache
from tritter_model.transformer import Transformer
from tritter_model.vision import IMAGE, PATCHES, WIDTH, PoolingHead, VisionLayer, VisionTower

CPU, META = torch.device("cpu"), torch.device("meta")


def published_parameters() -> int:
    """google/siglip-base-patch16-224's vision model, part by part."""
    attention = 4 * (768 * 768 + 768)
    mlp = 768 * 3072 + 3072 + 3072 * 768 + 768
    norm = 2 * 768
    embeddings = 3 * 16 * 16 * 768 + 768 + 196 * 768
    layers = 12 * (2 * norm + attention + mlp)
    pooling = 768 + attention + norm + mlp
    return embeddings + layers + norm + pooling


def test_the_tower_has_the_published_parameters() -> None:
    tower = VisionTower(4096, torch.bfloat16, META)
    projection = sum(p.numel() for p in tower.projection.parameters())
    assert projection == 768 * 4096 + 4096
    total = sum(p.numel() for p in tower.parameters())
    assert total - projection == published_parameters() == 92_884_224


def test_the_tower_is_frozen() -> None:
    assert not any(p.requires_grad for p in VisionTower(4096, torch.bfloat16, META).parameters())


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer instead of twelve: they are alike."""
    monkeypatch.setattr(vision, "LAYERS", 1)


def randomised(module: nn.Module) -> nn.Module:
    for name, parameter in module.named_parameters():
        mean = 1 if "norm" in name and name.endswith("weight") else 0
        parameter.data = mean + torch.randn_like(parameter) * 0.05
    return module


def torch_attention(weights: list[Tensor], biases: list[Tensor], out: nn.Module) -> nn.Module:
    theirs = nn.MultiheadAttention(WIDTH, 12, batch_first=True)
    state = {"in_proj_weight": torch.cat(weights), "in_proj_bias": torch.cat(biases)}
    theirs.load_state_dict(state | {"out_proj.weight": out.weight, "out_proj.bias": out.bias})
    return theirs.eval()


def mlp(module: Any, x: Tensor) -> Tensor:
    inner = F.gelu(F.linear(x, module.fc1.weight, module.fc1.bias), approximate="tanh")
    return F.linear(inner, module.fc2.weight, module.fc2.bias)


def norm(module: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,), module.weight, module.bias, 1e-6)


@torch.no_grad()
def test_a_layer_is_pytorch_s_pre_norm_transformer_layer() -> None:
    layer: Any = randomised(VisionLayer(torch.empty(0)))
    x = torch.randn(2, 9, WIDTH)
    theirs = torch_attention([layer.qkv.weight], [layer.qkv.bias], layer.out)
    rows = norm(layer.norm1, x)
    wanted = x + theirs(rows, rows, rows)[0]
    wanted = wanted + mlp(layer.mlp, norm(layer.norm2, wanted))
    got = layer(x.flatten(0, 1), 2).view_as(x)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=5e-5)


@torch.no_grad()
def test_the_pooling_head_is_one_query_over_the_patches() -> None:
    head: Any = randomised(PoolingHead(torch.empty(0)))
    x = torch.randn(2, 9, WIDTH)
    theirs = torch_attention(
        [head.query.weight, head.key_value.weight], [head.query.bias, head.key_value.bias], head.out
    )
    pooled = theirs(head.probe.expand(2, 1, WIDTH), x, x)[0][:, 0]
    wanted = pooled + mlp(head.mlp, norm(head.norm, pooled))
    torch.testing.assert_close(head(x.flatten(0, 1), 2), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("shallow")
@torch.no_grad()
def test_patches_are_a_strided_convolution(seed: int) -> None:
    tower, images = VisionTower(72, torch.float32, CPU), torch.randn(2, 3, IMAGE, IMAGE)
    randomised(tower)
    kernel = tower.patch.weight.view(WIDTH, 3, 16, 16)
    wanted = F.conv2d(images, kernel, tower.patch.bias, stride=16).flatten(2).transpose(1, 2)
    wanted = wanted + tower.position
    layer: Any = tower.layers[0]
    wanted = norm(tower.norm, layer(wanted.flatten(0, 1), 2))
    torch.testing.assert_close(tower.patches(images), wanted, rtol=1e-3, atol=1e-3)
    assert tower(images).shape == (2, PATCHES, 72)
    assert tower.pooled(images).shape == (2, WIDTH)


@pytest.fixture
def seeing(config: ModelConfig, seed: int, shallow: None) -> Transformer:
    del shallow  # it has acted
    return Transformer(replace(config, vision=True), CPU, seed=seed)


@torch.inference_mode()
def logits(model: Transformer, run: RunConfig, ids: Tensor, prefix: Tensor, chunk: int) -> Tensor:
    cache, parts = KVCache(run, CPU), []
    for part in ids.split(chunk, 1):
        patches = prefix[:, cache.length : cache.length + part.shape[1]]
        parts.append(model.extend(part, cache, 3, patches if patches.shape[1] else None))
    return model.all_logits(torch.cat(parts, 1)).float()


def test_a_chunk_boundary_inside_the_prefix_changes_nothing_but_rounding(
    seeing: Transformer, run: RunConfig
) -> None:
    run = replace(run, model=seeing.config, context=220, batch=2)
    run = replace(run, cache=replace(run.cache, dtype="bfloat16"))
    ids = torch.randint(0, 131, (2, 210))
    ids[:, :PATCHES] = -1
    prefix = torch.randn(2, PATCHES, 72).bfloat16()
    whole = logits(seeing, run, ids, prefix, 210)
    for chunk in (100, PATCHES, 64):
        parts = logits(seeing, run, ids, prefix, chunk)
        assert (parts - whole).norm() / whole.norm() <= 0.02
    other = logits(seeing, run, ids, prefix.roll(1, 0), 210)
    assert (other - whole).norm() / whole.norm() > 0.1


def test_an_image_changes_what_follows_it(seeing: Transformer) -> None:
    assert seeing.vision is not None
    with torch.inference_mode():
        grey, noise = (
            seeing.vision(x.bfloat16())
            for x in (torch.zeros(1, 3, IMAGE, IMAGE), torch.randn(1, 3, IMAGE, IMAGE))
        )
    assert grey.isfinite().all()
    assert grey.shape == (1, PATCHES, 72)
    assert not torch.equal(grey, noise)
