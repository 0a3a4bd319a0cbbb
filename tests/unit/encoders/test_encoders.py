from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from mmcl.encoders import lite0
from mmcl.encoders.lite0 import Lite0
from mmcl.encoders.timm import Timm
from mmcl.encoders.tiny import Tiny
from mmcl.errors import UserError


def test_lite0_has_each_tensor_in_its_place():
    """Timm's own network with the same tensors gives the same feature maps."""
    weights, name = lite0._load_weights()
    assert name == "efficientnet-lite0-57934424.pth"
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(weights)
    encoder = Lite0(levels=(4,), grid=2, image_size=64)
    pixels = encoder.transform()(Image.linear_gradient("L"))[None]
    with torch.no_grad():
        expected = network.forward_intermediates(pixels, indices=[4], intermediates_only=True)[0]
        assert expected.abs().max() > 1
        torch.testing.assert_close(encoder(pixels), expected.flatten(2).transpose(1, 2))
    assert encoder.transform()(Image.new("RGB", (9, 9), (255, 0, 255))).mean((1, 2)).tolist() == [1, -1, 1]


def test_lite0_tells_colours_apart():
    """Two images that differ in hue only: the deepest level alone tells them apart less than all levels do."""
    images = [Image.new("RGB", (64, 64), colour) for colour in ((200, 60, 60), (60, 60, 200))]

    def distance(levels):
        encoder = Lite0(levels=levels, image_size=64)
        with torch.no_grad():
            one, other = encoder(torch.stack([encoder.transform()(image) for image in images])).flatten(1)
        return 1 - torch.cosine_similarity(one, other, 0)

    assert distance((0, 1, 2, 3, 4)) > 0.05
    assert distance((0,)) > distance((4,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (0, 5)}, "in 0..4"),
        ({"levels": ()}, "in 0..4"),
        ({"levels": (1, 1)}, "distinct"),
        ({"grid": 0}, "no tokens"),
        ({"image_size": 16}, "16 pixels"),
    ],
)
def test_lite0_refuses(options, message):
    with pytest.raises(UserError, match=message):
        Lite0(**options)


def test_lite0_compares_the_shapes(monkeypatch):
    real = torch.load

    def swapped(*args, **kwargs):
        assert kwargs["weights_only"]
        state = real(*args, **kwargs)
        names = list(state)
        state[names[0]], state[names[6]] = state[names[6]], state[names[0]]
        return state

    monkeypatch.setattr(torch, "load", swapped)
    with pytest.raises(UserError, match="does not match timm"):
        Lite0()


def test_tiny_sees_colour_and_place():
    encoder = Tiny(tokens=4, image_size=32)
    image = Image.new("RGB", (32, 32), (128, 128, 128))
    image.paste((255, 0, 0), (0, 0, 16, 16))
    blue = Image.new("RGB", (32, 32), (128, 128, 128))
    blue.paste((0, 0, 255), (0, 0, 16, 16))
    with torch.no_grad():
        red, blue = encoder(torch.stack([encoder.transform()(image), encoder.transform()(blue)]))
    assert (red[0] - blue[0]).abs().max() > 0.1
    assert torch.equal(red[1:], blue[1:])
    assert (red[0] - red[1]).abs().max() > 0.1


def test_tiny_depends_on_its_seed_only():
    assert torch.equal(Tiny(seed=3).weight, Tiny(seed=3).weight)
    assert not torch.equal(Tiny(seed=3).weight, Tiny(seed=4).weight)


@pytest.mark.parametrize(("options", "message"), [({"tokens": 5}, "no square"), ({"image_size": 3}, "too small")])
def test_tiny_refuses(options, message):
    with pytest.raises(UserError, match=message):
        Tiny(**options)


def test_timm_takes_size_and_statistics_from_the_weights():
    clip = Timm(model="vit_tiny_patch16_224", pretrained=False)
    assert (clip.info.tokens, clip.info.width, clip.info.image_size) == (196, 192, 224)
    settings = timm.data.resolve_model_data_config(clip.network)
    assert clip.transform().mean == settings["mean"]
    assert clip.transform().std == settings["std"]
    assert clip.transform().interpolation == settings["interpolation"]
    assert clip.info.source == "random:0"


def test_timm_gives_the_last_block_as_forward_features_does():
    encoder = Timm(model="test_vit", pretrained=False, prefix_tokens=True, seed=5)
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels), encoder.network.forward_features(pixels))
        torch.testing.assert_close(
            Timm(model="test_vit", pretrained=False, seed=5)(pixels), encoder.network.forward_features(pixels)[:, 1:]
        )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(7)
    torch.save({"state_dict": timm.create_model("test_vit").state_dict()}, folder / "whole.pt")
    headless = timm.create_model("test_vit", num_classes=0).state_dict()
    safetensors.torch.save_file(headless, folder / "headless.safetensors")
    del headless["blocks.0.attn.qkv.weight"]
    safetensors.torch.save_file(headless, folder / "gap.safetensors")
    torch.save({"state_dict": {"cls_token": Path}}, folder / "code.pt")
    (folder / "text.pt").write_text("hello")
    (folder / "text.safetensors").write_text("hello")
    return folder


@pytest.mark.parametrize("name", ["whole.pt", "headless.safetensors"])
def test_timm_loads_a_checkpoint(checkpoints, name):
    encoder = Timm(model="test_vit", checkpoint=name, root=checkpoints)
    stored = timm.models.load_state_dict(str(checkpoints / name))
    assert encoder.info.source == f"timm:test_vit@{name}"
    assert all(torch.equal(tensor, stored[key]) for key, tensor in encoder.network.state_dict().items())


def test_timm_resizes_positions(checkpoints):
    encoder = Timm(model="test_vit", checkpoint="headless.safetensors", root=checkpoints, image_size=96)
    assert encoder.info.tokens == 36
    stored = timm.models.load_state_dict(str(checkpoints / "headless.safetensors"))
    assert torch.equal(encoder.network.blocks[0].attn.qkv.weight, stored["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vit_base_patch16_siglip224"}, "did you mean vit_base_patch16_siglip_224"),
        ({"model": "test_vit", "levels": (40,)}, "out of range"),
        ({"model": "test_vit", "levels": ()}, "no levels"),
        ({"model": "test_convnext", "prefix_tokens": True}, "no prefix tokens"),
        ({"model": "test_vit", "checkpoint": "none.pt"}, "does not exist"),
        ({"model": "test_vit", "checkpoint": "gap.safetensors"}, "lacks 1 of the tensors .* blocks.0.attn.qkv"),
        ({"model": "test_vit2", "checkpoint": "whole.pt"}, "test_vit2"),
        ({"model": "test_vit", "checkpoint": "code.pt"}, "cannot read"),
        ({"model": "test_vit", "checkpoint": "text.pt"}, "cannot read"),
        ({"model": "test_vit", "checkpoint": "text.safetensors"}, "cannot read"),
    ],
)
def test_timm_refuses(checkpoints, options, message):
    with pytest.raises(UserError, match=message):
        Timm(pretrained=False, root=checkpoints, **options)
