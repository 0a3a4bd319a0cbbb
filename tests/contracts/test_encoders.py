"""Every registered encoder keeps its promises; a new one is tested by being registered."""

from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmcl.model.views import has_views
from mmcl.recipe import registry
from mmcl.recipe.spec import PluginSpec
from mmcl.testing import check_encoder

CLASSES = {point.name: point for point in entry_points(group="mmcl.encoders")}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
MAPS = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "image_size": 64}


def random_model(kind, **config):
    return {"pretrained": False, "config": {"model_type": kind, **config}}


RANDOM = {"pretrained": False}
OPTIONS = {
    "fused": [
        {"encoders": ["tiny", {"name": "tiny", "tokens": 9, "width": 8, "image_size": 24}]},
        {
            "encoders": [
                {"name": "timm", "model": "test_vit", "pretrained": False, "image_size": 96},
                {"name": "lite0", "image_size": 64},
            ],
            "grid": 3,
        },
        {
            "encoders": [
                {"name": "timm", "model": "test_vit", "pretrained": False, "prefix_tokens": True},
                {"name": "timm", "model": "test_vit", "pretrained": False, "image_size": 96, "seed": 1},
            ],
            "join": "sequence",
        },
    ],
    "lite0": [{"image_size": 64}, {"image_size": 96, "levels": (2, 4), "grid": 3, "fit": "pad"}],
    "open_clip": [
        {**RANDOM, "model": "tiny-vit"},
        {**RANDOM, "model": "tiny-vit", "image_size": 96, "prefix_tokens": True, "grid": 2, "levels": (-2, -1)},
        {**RANDOM, "model": "tiny-coca", "levels": (-2,), "fit": "pad"},
        {**RANDOM, "model": "tiny-resnet", "levels": (0, -1), "fit": "crop"},
        {**RANDOM, "model": "tiny-siglip", "image_size": 96, "prefix_tokens": True},
        {**RANDOM, "model": "tiny-convnext", "grid": 3},
    ],
    "timm": [
        {"model": "test_vit", "pretrained": False},
        {"model": "test_vit", "pretrained": False, "image_size": 96, "prefix_tokens": True, "grid": 2},
        {"model": "test_vit3", "pretrained": False, "levels": (-2, -1)},
        {"model": "test_efficientnet", "pretrained": False, "image_size": 64, "levels": (0, -1), "fit": "crop"},
        {"model": "test_convnext", "pretrained": False, "grid": 3},
    ],
    "tiled": [
        {"encoder": "tiny"},
        {"encoder": {"name": "lite0", "image_size": 32, "grid": 2}, "max_tiles": 4, "min_tiles": 2, "thumbnail": False},
    ],
    "transformers": [
        random_model("clip_vision_model", image_size=32, **SMALL) | {"levels": (-2,)},
        random_model("siglip_vision_model", image_size=32, **SMALL) | {"image_size": 48, "fit": "pad"},
        random_model("siglip2_vision_model", num_patches=16, **SMALL) | {"grid": 2},
        random_model("dinov2", image_size=32, **SMALL) | {"levels": (1, -1), "prefix_tokens": True},
        random_model("dinov3_vit", image_size=32, num_register_tokens=2, **SMALL) | {"prefix_tokens": True},
        random_model("convnext", **MAPS) | {"levels": (1, -1), "grid": 3},
    ],
    "tiny": [{}, {"tokens": 9, "width": 8, "image_size": 30}],
}
pytestmark = pytest.mark.usefixtures("open_clip_models")
CASES = [(name, options) for name in sorted(CLASSES) for options in OPTIONS.get(name, [{}])]


def build(name, options):
    return registry.build("encoders", PluginSpec(name, options), Path())


def test_the_walk_finds_the_encoders():
    assert len(CLASSES) >= 4
    assert set(OPTIONS) <= set(CLASSES)
    assert len(CASES) >= 15


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_encoder_keeps_its_promises(name, options):
    check_encoder(build(name, options))


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_training_mode_gives_the_same_features_and_every_parameter_a_gradient(name, options):
    encoder = build(name, options)
    pixels = torch.stack([encoder.transform()(Image.radial_gradient("L").convert("RGB"))] * 2)
    pixels = pixels.flatten(0, 1) if has_views(encoder) else pixels
    expected = encoder.eval()(pixels)
    assert torch.equal(encoder.train()(pixels), expected)
    expected.square().sum().backward()
    assert any(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_two_builds_are_equal_and_leave_the_random_state(name, options):
    before = torch.random.get_rng_state()
    one = build(name, options)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = build(name, options)
    assert one.info == other.info
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
