import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import nn

from mmcl.encoders import open_clip as ours
from mmcl.encoders.open_clip import OpenCLIP as Encoder
from mmcl.errors import UserError

pytestmark = pytest.mark.usefixtures("open_clip_models")


def OpenCLIP(**options):
    """The encoder; random weights where no others are named."""
    return Encoder(**{"pretrained": False, **options})


OPEN_AI = open_clip.OPENAI_DATASET_MEAN


def library(name, **options):
    """OpenCLIP's own model, with the weights that it makes of seed 5."""
    torch.manual_seed(5)
    model = open_clip.create_model(name, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # new residual branches end in a norm of weight 0: nothing would be seen
            nn.init.uniform_(module.weight, 1, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model


def picture(width=90, height=90):
    one, two = Image.linear_gradient("L").resize((width, height)), Image.radial_gradient("L").resize((width, height))
    return Image.merge("RGB", (one, two, one.transpose(Image.Transpose.ROTATE_90).resize((width, height))))


def intermediates(visual, pixels, levels, normalised=True):
    found = visual.forward_intermediates(
        pixels, indices=levels, normalize_intermediates=normalised, intermediates_only=True, output_extra_tokens=True
    )
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in found["image_intermediates"]], -1)
    return tokens, found.get("image_intermediates_prefix")


@torch.no_grad()
def assert_same(encoder, pixels, expected):
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(encoder(pixels), expected, atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------- features are the library's own


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-quickgelu", "tiny-clipa"])
def test_last_block_gives_the_tokens_of_the_model_itself(name):
    """On the same image, through its own transform: the patch tokens that it gives beside the pooled vector."""
    torch.manual_seed(5)
    model, _, transform = open_clip.create_model_and_transforms(name)
    visual = model.eval().visual
    encoder = OpenCLIP(model=name, seed=5)
    pixels = encoder.transform()(picture())[None]
    torch.testing.assert_close(pixels[0], transform(picture()), atol=1e-6, rtol=0)
    visual.output_tokens, visual.proj = True, None
    pooled, tokens = visual(pixels)
    assert_same(encoder, pixels, tokens)
    if name != "tiny-clipa":  # whose pooled vector is an average
        both = OpenCLIP(model=name, seed=5, prefix_tokens=True)
        assert_same(both, pixels, torch.cat([pooled[:, None], tokens], 1))
        assert (encoder.info.tokens, both.info.tokens) == (16, 17)


@torch.no_grad()
def test_activation_is_the_models_own():
    pixels = torch.randn(1, 3, 64, 64)
    plain, quick = (OpenCLIP(model=name, seed=5)(pixels) for name in ("tiny-vit", "tiny-quickgelu"))
    assert (plain - quick).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("levels", [(-2,), (0, -1), (2,)])
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-timm", "tiny-siglip"])
def test_levels_and_prefix_tokens_are_those_of_forward_intermediates(name, levels):
    visual = library(name).visual
    encoder = OpenCLIP(model=name, seed=5, levels=levels)
    both = OpenCLIP(model=name, seed=5, levels=levels, prefix_tokens=True)
    pixels = torch.randn(2, 3, encoder.info.image_size, encoder.info.image_size)
    tokens, prefixes = intermediates(visual, pixels, list(levels))
    prefix = torch.cat(prefixes, -1)
    assert encoder.info.width == tokens.shape[-1]
    assert both.info.tokens == encoder.info.tokens + prefix.shape[1]
    with torch.no_grad():
        assert torch.equal(both(pixels)[:, prefix.shape[1] :], encoder(pixels))
        torch.testing.assert_close(both(pixels)[:, : prefix.shape[1]], prefix, atol=1e-6, rtol=0)
    if len(levels) == 1:  # several are scaled before they are joined
        assert_same(encoder, pixels, tokens)


@torch.no_grad()
def test_norm_of_the_pooled_vector_is_left_out():
    """CoCa's is as wide as its queries, not as its tokens."""
    visual = library("tiny-coca").visual
    pixels = torch.randn(2, 3, 64, 64)
    assert visual.ln_post.normalized_shape == (16,)
    assert_same(OpenCLIP(model="tiny-coca", seed=5), pixels, intermediates(visual, pixels, [-1], False)[0])


@torch.no_grad()
def test_timm_tower_gives_what_its_trunk_gives():
    visual = library("tiny-timm").visual
    pixels = torch.randn(2, 3, 160, 160)
    expected = visual.trunk.forward_features(pixels)
    assert_same(OpenCLIP(model="tiny-timm", seed=5, prefix_tokens=True), pixels, expected)


@torch.no_grad()
def test_resnet_gives_the_map_before_its_attention_pool(weights):
    visual = library("tiny-resnet").visual
    pixels = torch.randn(2, 3, 64, 64)
    expected = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
    stored = {"model": "tiny-resnet", "checkpoint": "tiny-resnet.safetensors", "root": weights}
    encoder = OpenCLIP(**stored)
    assert (encoder.info.tokens, encoder.info.width) == (4, 256)
    assert_same(encoder, pixels, expected.flatten(2).transpose(1, 2))
    assert_same(OpenCLIP(**stored, levels=(1,)), pixels, intermediates(visual, pixels, [1])[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet", "tiny-siglip"])
def test_runs_in_bfloat16(name):
    encoder = OpenCLIP(model=name).bfloat16()
    features = encoder(torch.randn(1, 3, encoder.info.image_size, encoder.info.image_size).bfloat16())
    assert features.dtype == torch.bfloat16
    assert features.isfinite().all()


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-coca", "tiny-resnet", "tiny-siglip", "tiny-timm"])
def test_nothing_is_kept_that_the_tokens_do_not_need(name):
    encoder = OpenCLIP(model=name)
    encoder(torch.randn(1, 3, encoder.info.image_size, encoder.info.image_size)).square().sum().backward()
    assert not [key for key, parameter in encoder.named_parameters() if parameter.grad is None]


def test_text_tower_is_never_built():
    """This model's would have to be fetched."""
    assert OpenCLIP(model="tiny-other-text").info.tokens == 16


# ------------------------------------------------------------------------------------------------- weights and places


@pytest.fixture(scope="module")
def weights(tmp_path_factory, open_clip_models) -> Path:
    """Files of weights, and folders as OpenCLIP saves them."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("tiny-vit", "tiny-resnet", "tiny-siglip", "tiny-coca"):
        safetensors.torch.save_file(library(name).state_dict(), folder / f"{name}.safetensors")
    state = library("tiny-vit").state_dict()
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, folder / "run.pt"
    )
    tower = library("tiny-vit").visual.state_dict()
    torch.save(tower, folder / "tower.bin")
    safetensors.torch.save_file(
        {key: tensor for key, tensor in tower.items() if "resblocks.1" not in key}, folder / "gap.safetensors"
    )
    deeper = {
        key.replace("resblocks.2", "resblocks.3"): tensor.clone()
        for key, tensor in tower.items()
        if "resblocks.2" in key
    }
    safetensors.torch.save_file({**tower, **deeper}, folder / "deep.safetensors")
    safetensors.torch.save_file({**tower, "ln_pre.weight": torch.ones(9)}, folder / "shape.safetensors")
    torch.save({"state_dict": {"visual.proj": Path}}, folder / "code.pt")
    torch.save([torch.ones(2)], folder / "list.pt")
    (folder / "text.safetensors").write_text("hello")
    config = json.loads((open_clip_models / "tiny-vit.json").read_text())
    settings = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.5, 0.25], "interpolation": "bilinear", "resize_mode": "squash"}

    def saved(name, files, **content):
        (folder / name).mkdir()
        (folder / name / "open_clip_config.json").write_text(json.dumps(content))
        for file in files:
            shutil.copy(folder / "tiny-vit.safetensors", folder / name / file)

    saved("good", ["open_clip_model.safetensors", "notes.pt"], model_cfg=config, preprocess_cfg=settings)
    saved("alone", ["epoch_3.safetensors"], model_cfg=config)
    saved("empty", [], model_cfg=config)
    saved("several", ["epoch_2.safetensors", "epoch_3.safetensors"], model_cfg=config)
    saved("no-model", ["model.safetensors"], preprocess_cfg=settings)
    odd = {**config, "vision_cfg": {**config["vision_cfg"], "colour": 1}}
    saved("odd", ["model.safetensors"], model_cfg=odd)
    saved("grey", ["model.safetensors"], model_cfg=config, preprocess_cfg={"mean": [0.5]})
    (folder / "broken").mkdir()
    (folder / "broken" / "open_clip_config.json").write_text("{")
    return folder


@pytest.mark.parametrize("name", ["tiny-vit.safetensors", "run.pt", "tower.bin"])
def test_checkpoint_of_model_or_tower(weights, name):
    encoder = OpenCLIP(model="tiny-vit", checkpoint=name, root=weights)
    expected = library("tiny-vit").visual.state_dict()
    assert encoder.info.source == f"open_clip:tiny-vit@{name}"
    assert encoder.tower.state_dict().keys() == expected.keys() - {"proj"}
    assert all(torch.equal(tensor, expected[key]) for key, tensor in encoder.tower.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize(("name", "size"), [("tiny-vit", 96), ("tiny-vit", 32), ("tiny-siglip", 96), ("tiny-coca", 96)])
def test_image_size_resamples_positions_as_the_library_does(weights, name, size):
    path = weights / f"{name}.safetensors"
    visual = library(name, pretrained=str(path), force_image_size=size).visual
    encoder = OpenCLIP(model=name, checkpoint=str(path), image_size=size)
    assert encoder.info.tokens == (size // 16) ** 2
    pixels = encoder.transform()(picture())[None]
    assert pixels.shape[-1] == size
    assert_same(encoder, pixels, intermediates(visual, pixels, [-1], name != "tiny-coca")[0])


@torch.no_grad()
def test_resnet_takes_another_size(weights):
    """OpenCLIP can't load that: the positions of its attention pool don't fit. The map does not need them."""
    encoder = OpenCLIP(model="tiny-resnet", checkpoint="tiny-resnet.safetensors", root=weights, image_size=96)
    pixels = torch.randn(1, 3, 96, 96)
    assert_same(encoder, pixels, intermediates(library("tiny-resnet").visual, pixels, [-1])[0])


@torch.no_grad()
def test_local_folder(weights):
    encoder = OpenCLIP(model="local-dir:good", root=weights)
    assert encoder.info.source == "open_clip:good@open_clip_model.safetensors"
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{weights / 'good'}")
    image = picture(90, 40)
    pixels = encoder.transform()(image)[None]
    torch.testing.assert_close(pixels[0], transform(image), atol=1e-6, rtol=0)
    assert_same(encoder, pixels, intermediates(model.eval().visual, pixels, [-1])[0])
    assert OpenCLIP(model="local-dir:alone", root=weights).info.source == "open_clip:alone@epoch_3.safetensors"
    other = OpenCLIP(model="local-dir:empty", checkpoint="run.pt", root=weights)
    assert other.info.source == "open_clip:empty@run.pt"
    assert torch.equal(other(pixels), encoder(pixels))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache in a folder of its own, without network; call it to put files there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(repository, files):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        for name, source in files.items():
            shutil.copy(source, snapshot / name)

    return put


def test_hub_model_from_the_cache(hub, weights):
    good = weights / "good"
    hub("org/name", {file: good / file for file in ("open_clip_config.json", "open_clip_model.safetensors")})
    encoder = OpenCLIP(model="hf-hub:org/name")
    assert encoder.info.source == "open_clip:hf-hub:org/name"
    assert encoder.transform().mean == (0.5, 0.4, 0.3)
    assert torch.equal(encoder.tower.conv1.weight, library("tiny-vit").visual.conv1.weight)
    other = OpenCLIP(model="hf-hub:org/name", checkpoint="run.pt", root=weights)
    assert other.info.source == "open_clip:hf-hub:org/name@run.pt"


@torch.no_grad()
def test_tag_from_the_cache(hub, tmp_path):
    """A tag's weights and preprocessing, for the smallest model that has one."""
    name, tag = "MobileCLIP2-S0", "dfndr2b"
    torch.manual_seed(5)
    visual = timm.create_model("fastvit_mci0", num_classes=512).eval()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({f"visual.trunk.{key}": value for key, value in visual.state_dict().items()}, path)
    hub("timm/MobileCLIP2-S0-OpenCLIP", {"open_clip_model.safetensors": path})
    encoder = OpenCLIP(model=name, pretrained=tag.upper())
    known = open_clip.get_pretrained_cfg(name, tag)
    assert encoder.info.source == f"open_clip:{name}@{tag}"
    assert (encoder.transform().mean, encoder.transform().std) == (known["mean"], known["std"])
    assert encoder.transform().interpolation == known["interpolation"] == "bilinear"
    assert encoder.transform().size == 256
    pixels = encoder.transform()(picture())[None]
    expected = visual.forward_intermediates(pixels, indices=[-1], norm=True, intermediates_only=True)[0]
    assert_same(encoder, pixels, expected.flatten(2).transpose(1, 2))
    offline = OpenCLIP(model=name, pretrained=tag, checkpoint=str(path))
    assert offline.info.source == f"open_clip:{name}@weights.safetensors"
    assert offline.transform() == encoder.transform()


def test_preprocessing_without_a_tag_is_what_the_tags_agree_on():
    assert ours._common_settings("ViT-B-16-SigLIP")["mean"] == (0.5, 0.5, 0.5)
    assert "mean" not in ours._common_settings("tiny-vit")
    assert OpenCLIP(model="tiny-vit").transform().mean == OPEN_AI
    crop = OpenCLIP(model="tiny-vit", fit="crop").transform()
    assert (crop.fit, crop.crop, OpenCLIP(model="tiny-vit").transform().fit) == ("crop", 1.0, "squash")


# ----------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vit-b32"}, r"no model `vit-b32`\n.*did you mean .*ViT-B-32"),
        ({"model": "ViT-B-32", "pretrained": "laion3b"}, r"no weights `laion3b` of `ViT-B-32`\n.*laion2b_s34b_b79k"),
        ({"pretrained": "laion2b"}, r"no weights `laion2b` of `tiny-vit`\n.*there are none"),
        (
            {"model": "ViT-B-32", "pretrained": None},
            r"which weights of `ViT-B-32`.\n.*laion2b_s34b_b79k.*false for random",
        ),
        ({"model": "ViT-B-32", "pretrained": True}, "which weights"),
        ({"pretrained": None}, r"which weights of `tiny-vit`.\n.*a `checkpoint`, or false"),
        ({"model": "ViT-B-32", "pretrained": "openai"}, r"QuickGELU.*\n.*ViT-B-32-quickgelu"),
        ({"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, "cannot fetch `ViT-B-32@laion2b_s34b_b79k`"),
        ({"model": "hf-hub:org/none"}, r"cannot fetch `hf-hub:org/none`.*\n.*network"),
        ({"model": "local-dir:good", "pretrained": "openai"}, "brings its weights along"),
        ({"model": "local-dir:none"}, "cannot read .*none"),
        ({"model": "local-dir:broken"}, "cannot read .*broken"),
        ({"model": "local-dir:no-model"}, "no `model_cfg`"),
        ({"model": "local-dir:odd"}, "cannot build `odd`.*colour"),
        ({"model": "local-dir:grey"}, "preprocess_cfg.*not understood"),
        ({"model": "local-dir:empty"}, "has no weights"),
        ({"model": "local-dir:several"}, r"more than one file of weights: epoch_2.safetensors, epoch_3"),
        ({"model": "tiny-wide"}, "64 x 96 pixels, no squares"),
        ({"levels": (40,)}, "40 is out of range"),
        ({"levels": (-4,)}, "out of range"),
        ({"levels": ()}, "no levels"),
        ({"levels": (-1, 2)}, "one block twice"),
        ({"grid": 0}, "without tokens"),
        ({"image_size": 50}, r"50 pixels do not divide into patches of 16\n.*48"),
        ({"image_size": -16}, "-16 pixels do not divide"),
        ({"model": "tiny-resnet", "image_size": 48}, "patches of 32"),
        ({"model": "tiny-siglip", "image_size": 100}, "patches of 16"),
        ({"model": "tiny-resnet", "prefix_tokens": True}, "no prefix tokens"),
        ({"model": "tiny-convnext", "prefix_tokens": True}, "no prefix tokens"),
        ({"checkpoint": "none.pt"}, "none.pt does not exist"),
        ({"checkpoint": "code.pt"}, "cannot read .*code.pt"),
        ({"checkpoint": "list.pt"}, "cannot read .*list.pt"),
        ({"checkpoint": "text.safetensors"}, "cannot read .*text.safetensors"),
        (
            {"checkpoint": "gap.safetensors"},
            r"has 43 tensors: 12 tensors are missing \(.*resblocks.1.attn.in_proj_bias",
        ),
        ({"checkpoint": "deep.safetensors"}, r": 12 tensors are not of this model \(transformer.resblocks.3.attn"),
        ({"checkpoint": "shape.safetensors"}, r": 1 tensors are of another shape \(ln_pre.weight\)"),
        ({"checkpoint": "tiny-siglip.safetensors"}, "43 tensors are missing .*; .* tensors are not of this model"),
    ],
    ids=str,
)
def test_refuses(weights, hub, options, message):
    with pytest.raises(UserError, match=message) as caught:
        OpenCLIP(**{"model": "tiny-vit", "root": weights, **options})
    assert all(re.match(r"model\.encoder", problem.where) for problem in caught.value.problems)


@timm.models.register_model
def pooled_only(pretrained=False, **options):
    """A network that gives one vector and nothing else."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.default_cfg, network.num_features, network.reset_classifier = {}, 3, lambda *args, **kwargs: None
    return network


def test_refuses_a_tower_without_patch_tokens(open_clip_models):
    config = {"embed_dim": 8, "vision_cfg": {"timm_model_name": "pooled_only"}, "text_cfg": {}}
    path = open_clip_models / "tiny-pooled.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    with pytest.raises(UserError, match=r"`tiny-pooled` \(Sequential\) gives one vector per image, no patch tokens"):
        OpenCLIP(model="tiny-pooled")
