import json

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from mmcl.encoders.transformers import Transformers
from mmcl.errors import UserError

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
MAPS = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "patch_size": 4}
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
ODD = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "size": {"height": 32, "width": 32}}
SQUARE = ("ViTImageProcessor", ODD)
CLIP = ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}})
NAFLEX = ("Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 16})

# model type: its options, its image processor, prefix tokens, positions of the hidden states -1 and -2 per side
FAMILIES = {
    "clip_vision_model": ({"image_size": 32, **SMALL}, CLIP, 1, (4, 4)),
    "siglip_vision_model": ({"image_size": 32, **SMALL}, SQUARE, 0, (4, 4)),
    "siglip2_vision_model": ({"num_patches": 16, **SMALL}, NAFLEX, 0, (4, 4)),
    "dinov2": ({"image_size": 56, **SMALL}, SQUARE, 1, (4, 4)),  # as the real one: made for more than it is given
    "dinov2_with_registers": ({"image_size": 32, "num_register_tokens": 3, **SMALL}, SQUARE, 4, (4, 4)),
    "dinov3_vit": ({"image_size": 32, "num_register_tokens": 2, **SMALL}, SQUARE, 3, (4, 4)),
    "vit": ({"image_size": 32, **SMALL}, SQUARE, 1, (4, 4)),
    "deit": ({"image_size": 32, **SMALL}, SQUARE, 2, (4, 4)),
    "beit": ({"image_size": 32, **SMALL}, SQUARE, 1, (4, 4)),
    "ijepa": ({"image_size": 32, **SMALL}, SQUARE, 0, (4, 4)),
    "aimv2_vision_model": ({"image_size": 32, **SMALL}, SQUARE, 0, (4, 4)),
    "dinov3_convnext": ({"image_size": 32, **MAPS}, SQUARE, 1, (1, 2)),
    "convnext": ({"image_size": 32, **MAPS}, SQUARE, 0, (1, 2)),
    "swin": ({"image_size": 32, **SWIN}, SQUARE, 0, (4, 4)),
}


def config_of(kind, **options):
    return transformers.AutoConfig.for_model(kind, **options)


def save(network, folder, processor=SQUARE):
    """With weights that are all random: what is born as zeros or ones would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    network.eval().save_pretrained(folder)
    name, options = processor
    getattr(transformers, name)(**options).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind, (options, processor, _, _) in FAMILIES.items():
        save(transformers.AutoModel.from_config(config_of(kind, **options)), root / kind, processor)
    return root


def noise(size, seed=0):
    data = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(data)


def by_the_library(folder, inputs):
    """Last hidden state and all of them, by the library's own model."""
    network = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = network(**inputs, output_hidden_states=True)
    return out.last_hidden_state, out.get("reshaped_hidden_states") or out.hidden_states


def inputs_of(pixels, kind, patch=8):
    """Pixels [1, 3, S, S] as the library's model wants them; the patches are made by the library."""
    if kind != "siglip2_vision_model":
        return {"pixel_values": pixels}
    patches = torch.from_numpy(convert_image_to_patches(pixels[0].numpy(), patch))[None]
    side = pixels.shape[-1] // patch
    mask = torch.ones(1, side * side, dtype=torch.int32)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor([[side, side]])}


def as_tokens(states, place, prefix):
    """Prefix and grid of the last (-1) or another hidden state, [1, P, C] and [1, L, C]."""
    state = states[0] if place == -1 else states[1][place]
    if state.ndim == 4:
        return state[:, :0], state.flatten(2).transpose(1, 2)
    return state[:, :prefix], state[:, prefix:]


@pytest.mark.parametrize("kind", FAMILIES)
def test_features_are_the_library_s(folders, kind):
    _, _, prefix, sides = FAMILIES[kind]
    processor = transformers.AutoImageProcessor.from_pretrained(folders / kind)
    theirs = processor(images=noise(32), return_tensors="pt")
    for place, side in ((-1, sides[0]), (-2, sides[1])):
        encoder = Transformers(model=kind, levels=(place,), root=folders)
        assert encoder.info.source == f"transformers:{kind}"
        assert (encoder.info.image_size, encoder.info.tokens) == (32, side**2)
        pixels = encoder.transform()(noise(32))[None]
        inputs = inputs_of(pixels, kind)
        torch.testing.assert_close(inputs["pixel_values"], theirs["pixel_values"], atol=1e-6, rtol=1e-6)
        before, expected = as_tokens(by_the_library(folders / kind, inputs), place, prefix)
        with torch.no_grad():
            torch.testing.assert_close(encoder(pixels), expected, atol=1e-6, rtol=1e-6)
            # From the image on; the rounding of its pixels grows from block to block.
            whole = as_tokens(by_the_library(folders / kind, theirs), place, prefix)[1]
            assert (encoder(pixels) - whole).abs().max() < 3e-6 * whole.abs().max()
        if not before.shape[1]:
            with pytest.raises(UserError, match="no prefix tokens"):
                Transformers(model=kind, levels=(place,), prefix_tokens=True, root=folders)
            continue
        encoder = Transformers(model=kind, levels=(place,), prefix_tokens=True, root=folders)
        assert encoder.info.tokens == prefix + side**2
        with torch.no_grad():
            torch.testing.assert_close(encoder(pixels), torch.cat([before, expected], 1), atol=1e-6, rtol=1e-6)


def test_the_two_levels_differ(folders):
    """Else the test above would not see which of them is taken."""
    for kind in FAMILIES:
        last, hidden = by_the_library(folders / kind, inputs_of(torch.rand(1, 3, 32, 32), kind))
        if last.shape == hidden[-2].shape:
            assert (last - hidden[-2]).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model", "dinov2", "dinov3_vit", "vit", "ijepa"])
def test_another_size_resizes_the_positions(folders, kind):
    options = {"interpolate_pos_encoding": True} if kind not in ("dinov2", "dinov3_vit") else {}
    network = transformers.AutoModel.from_pretrained(folders / kind).eval()
    encoder = Transformers(model=kind, image_size=48, root=folders)
    pixels = encoder.transform()(noise(48))[None]
    assert pixels.shape == (1, 3, 48, 48)
    with torch.no_grad():
        expected = network(pixels, **options).last_hidden_state[:, FAMILIES[kind][2] :]
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-6, rtol=1e-6)
    assert encoder.info.tokens == 36


def test_naflex_takes_any_grid(folders):
    encoder = Transformers(model="siglip2_vision_model", image_size=40, root=folders)
    assert encoder.info.tokens == 25
    pixels = encoder.transform()(noise(40))[None]
    expected, _ = by_the_library(folders / "siglip2_vision_model", inputs_of(pixels, "siglip2_vision_model"))
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-6, rtol=1e-6)


def test_a_size_of_the_checkpoint_s_own_need_not_divide(tmp_path):
    """As SigLIP so400m: 384 pixels, patches of 14."""
    processor = ("SiglipImageProcessor", {"size": {"height": 35, "width": 35}})
    config = config_of("siglip_vision_model", image_size=35, **SMALL)
    save(transformers.SiglipVisionModel(config), tmp_path, processor)
    encoder = Transformers(model=".", root=tmp_path)
    assert (encoder.info.image_size, encoder.info.tokens) == (35, 16)
    assert Transformers(model=".", image_size=35, root=tmp_path).info == encoder.info


def test_levels_are_joined_and_averaged(folders):
    encoder = Transformers(model="vit", levels=(1, -1), grid=2, root=folders)
    assert (encoder.info.tokens, encoder.info.width) == (4, 64)
    one = Transformers(model="vit", levels=(-1,), grid=2, root=folders)
    pixels = encoder.transform()(noise(32))[None]
    with torch.no_grad():
        whole = Transformers(model="vit", root=folders)(pixels)
        torch.testing.assert_close(one(pixels)[0, 1], whole[0].reshape(4, 4, -1)[:2, 2:].mean((0, 1)))
        cosine = torch.cosine_similarity(encoder(pixels)[..., 32:], one(pixels), dim=-1)
    torch.testing.assert_close(cosine, torch.ones(1, 4))


# ------------------------------------------------------------------------------------------------------------- weights


def full(kind, vision, **text):
    return config_of(kind, vision_config={"image_size": 32, **SMALL, **vision}, text_config={**TEXT, **text})


@pytest.mark.parametrize(
    ("config", "prefix"),
    [
        (full("clip", {}), 1),
        (full("siglip", {}), 0),
        (full("aimv2", {}), 0),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_of_a_checkpoint_with_text_only_the_vision_tower(tmp_path, config, prefix):
    network = transformers.AutoModel.from_config(config)
    save(network, tmp_path)
    encoder = Transformers(model=".", root=tmp_path)
    pixels = encoder.transform()(noise(32))[None]
    with torch.no_grad():
        expected = network.vision_model(pixel_values=pixels).last_hidden_state[:, prefix:]
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-6, rtol=1e-6)
    assert not [name for name, _ in encoder.named_parameters() if "text" in name or "head" in name]
    tower = sum(parameter.numel() for parameter in network.vision_model.parameters())
    assert sum(parameter.numel() for parameter in encoder.parameters()) <= tower


def test_of_a_ready_vlm_only_the_vision_tower(tmp_path):
    parts = {"vision_config": {"model_type": "clip_vision_model", "image_size": 32, **SMALL}}
    network = transformers.AutoModelForImageTextToText.from_config(
        config_of("llava", text_config={"model_type": "llama", **TEXT}, **parts)
    )
    save(network, tmp_path)
    encoder = Transformers(model=".", levels=(-2,), root=tmp_path)
    pixels = encoder.transform()(noise(32))[None]
    with torch.no_grad():
        expected = network.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-6, rtol=1e-6)
    assert sum(p.numel() for p in encoder.parameters()) == sum(
        p.numel() for p in network.model.vision_tower.parameters()
    )


def test_half_precision_is_loaded_as_float32(tmp_path):
    network = transformers.ViTModel(config_of("vit", image_size=32, **SMALL)).bfloat16()
    save(network, tmp_path)
    encoder = Transformers(model=".", root=tmp_path)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    stored = network.layernorm.weight.float()
    assert torch.equal(encoder.network.layernorm.weight, stored)


def test_bfloat16_runs(folders):
    for kind in FAMILIES:
        encoder = Transformers(model=kind, root=folders).bfloat16()
        assert encoder(torch.zeros(2, 3, 32, 32)).isfinite().all()


def test_random_weights_from_a_folder_or_from_options(folders):
    one, other, third = (Transformers(model="vit", pretrained=False, seed=seed, root=folders) for seed in (1, 1, 2))
    options = Transformers(pretrained=False, config={"model_type": "vit", "image_size": 32, **SMALL}, seed=1)
    assert (one.info.source, third.info.source, options.info.source) == ("random:1", "random:2", "random:1")
    weights = [encoder.network.layers[0].attention.q_proj.weight for encoder in (one, other, third, options)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(weights[0], weights[3])
    assert one.transform().mean == (0.4, 0.5, 0.6)


def test_a_backbone_alone(tmp_path):
    """An architecture that the library has as a backbone only."""
    encoder = Transformers(
        pretrained=False,
        config={"model_type": "rt_detr_resnet", "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]}
        | {"layer_type": "basic"},
        levels=(-2, -1),
        image_size=64,
    )
    assert encoder.info.width == 20


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    root = tmp_path_factory.mktemp("broken")
    vit = config_of("vit", image_size=32, **SMALL)
    for name in ("gap", "shape", "pickle", "code", "garbage", "processor"):
        save(transformers.ViTModel(vit), root / name)
    path = root / "gap" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    gone = sorted(key for key in tensors if ".0." not in key and key.endswith(("query.weight", "q_proj.weight")))
    safetensors.torch.save_file({k: v for k, v in tensors.items() if k not in gone}, path, {"format": "pt"})
    wrong = {k: v[:5].clone() if k == "layernorm.weight" else v for k, v in tensors.items()}
    safetensors.torch.save_file(wrong, root / "shape" / "model.safetensors", {"format": "pt"})
    torch.save(tensors, root / "pickle" / "pytorch_model.bin")
    (root / "pickle" / "model.safetensors").unlink()
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (root / "code" / "config.json").write_text(json.dumps(own))
    (root / "code" / "mine.py").write_text("raise SystemExit('code of a checkpoint was run')")
    (root / "garbage" / "model.safetensors").write_text("hello")
    (root / "processor" / "preprocessor_config.json").write_text("hello")
    transformers.AutoModel.from_config(config_of("bert", **TEXT)).save_pretrained(root / "bert")
    (root / "empty").mkdir()
    return root


@pytest.mark.parametrize(
    ("options", "message", "where"),
    [
        ({"model": "gap"}, r"lacks 2 of its \d+ tensors \(layers\.1\.\S*q_proj\.weight, layers\.2", "model"),
        ({"model": "shape"}, r"has 1 of another shape \(layernorm.weight: \(5,\), not \(32,\)", "model"),
        ({"model": "pickle"}, "has no model.safetensors(.|\n)*pickled", "model"),
        ({"model": "code"}, "code of its own", "model"),
        ({"model": "garbage"}, "cannot load `garbage`", "model"),
        ({"model": "processor"}, "image processor of `processor`", "model"),
        ({"model": "bert"}, "BertModel, which reads no images", "model"),
        ({"model": "empty"}, "has no config.json", "model"),
        ({"model": "./none"}, "none does not exist", "model"),
        ({"model": "not a name"}, "does not exist", "model"),
        ({}, "either `model`, or `config`", ""),
        ({"model": "gap", "config": {}, "pretrained": False}, "either `model`, or `config`", ""),
        ({"config": {"model_type": "vit"}}, "either `model`, or `config`", ""),
        ({"config": {}, "pretrained": False}, "no `model_type`", "config.model_type"),
        ({"config": {"model_type": "dinov22"}, "pretrained": False}, "did you mean `dinov2`", "config.model_type"),
        (
            {"config": {"model_type": "vit", "hiden_size": 3}, "pretrained": False},
            "did you mean `hidden_size`",
            "config.hiden_size",
        ),
        ({"config": {"model_type": "vit", "hidden_size": "x"}, "pretrained": False}, "refuses it", "config"),
        (
            {"config": {"model_type": "clip", "vision_config": {"patches": 3}}, "pretrained": False},
            "no such option",
            "config.vision_config.patches",
        ),
        (
            {"config": {"model_type": "vit_mae", **SMALL}, "pretrained": False},
            "shuffles its patches at random",
            "model",
        ),
        (
            {"config": {"model_type": "yolos", "image_size": [32, 32], **SMALL}, "pretrained": False, "image_size": 32},
            "no grid of features: 117 x 32 for an image instead of 1 prefix tokens and 4 x 4",
            "model",
        ),
    ],
)
def test_what_is_refused(broken, options, message, where):
    with pytest.raises(UserError, match=message) as caught:
        Transformers(root=broken, **options)
    assert caught.value.problems[0].where == ".".join(filter(None, ("model.encoder", where)))


@pytest.mark.parametrize(
    ("options", "message", "where"),
    [
        ({"levels": (4,)}, "no level 4(.|\n)*0..3, or -4..-1", "levels"),
        ({"levels": (-5,)}, "no level -5", "levels"),
        ({"levels": ()}, "no levels", ""),
        ({"grid": 0}, "without tokens", ""),
        ({"image_size": 50}, "no multiple of the patch, 8 pixels(.|\n)*48 or 56", "image_size"),
        ({"image_size": 4}, "no multiple of the patch(.|\n)*8 or more", "image_size"),
        ({"image_size": 0}, "no multiple of the patch(.|\n)*8 or more", "image_size"),
    ],
)
def test_what_does_not_fit_the_model(folders, options, message, where):
    with pytest.raises(UserError, match=message) as caught:
        Transformers(model="vit", root=folders, **options)
    assert caught.value.problems[0].where == ".".join(filter(None, ("model.encoder", where)))


def test_a_model_that_cannot_resize_its_positions(folders):
    with pytest.raises(UserError, match="cannot take images of 48 pixels"):
        Transformers(model="aimv2_vision_model", image_size=48, root=folders)


def test_tokens_in_another_order_are_refused(folders, monkeypatch):
    """The number of tokens alone would let a class token after the patches pass."""
    real = transformers.models.vit.modeling_vit.ViTEmbeddings.forward

    def moved(self, *args, **kwargs):
        return real(self, *args, **kwargs).roll(-1, 1)

    monkeypatch.setattr(transformers.models.vit.modeling_vit.ViTEmbeddings, "forward", moved)
    with pytest.raises(UserError, match="no grid of features: 17 x 32"):
        Transformers(model="vit", root=folders)
