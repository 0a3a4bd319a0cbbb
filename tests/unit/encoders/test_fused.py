"""Each encoder gives in `fused` what it gives alone."""

from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from mmcl.api import run
from mmcl.encoders.fused import Fused, resample
from mmcl.encoders.lite0 import Lite0
from mmcl.encoders.timm import Timm
from mmcl.encoders.tiny import Tiny
from mmcl.errors import UserError
from mmcl.model.build import build_model
from mmcl.model.features import Features, fingerprint
from mmcl.model.probe import encoder_problems, probe_images
from mmcl.protocols import EncoderInfo
from mmcl.recipe.spec import FeaturesSpec, LanguageSpec, LoRASpec, ModelSpec, PluginSpec
from mmcl.testing import tiny_tasks

IMAGES = [*probe_images(), Image.linear_gradient("L").convert("RGB").rotate(90)]


def alone(encoder):
    with torch.no_grad():
        return encoder(torch.stack([encoder.transform()(image) for image in IMAGES]))


def vit(**options):
    return Timm(model="test_vit", pretrained=False, **options)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_by_channel_each_encoder_keeps_its_features_and_places():
    parts = vit(image_size=96), Lite0(image_size=64, grid=6), Tiny(tokens=36, image_size=48)
    fused = Fused(encoders=parts)
    widths = [part.info.width for part in parts]
    assert (fused.info.tokens, fused.info.width, fused.info.image_size) == (36, sum(widths), 96)
    assert fused.info.source == f"fused:channel(random:0 + {parts[1].info.source} + random:0)"
    for found, part in zip(alone(fused).split(widths, 2), parts, strict=True):
        close(found, alone(part))


def test_in_sequence_the_tokens_of_one_follow_those_of_the_other():
    parts = vit(prefix_tokens=True), vit(image_size=96, seed=1)
    fused = Fused(encoders=parts, join="sequence")
    tokens = [part.info.tokens for part in parts]
    assert (fused.info.tokens, fused.info.width) == (sum(tokens), parts[0].info.width)
    for found, part in zip(alone(fused).split(tokens, 1), parts, strict=True):
        close(found, alone(part))


@pytest.mark.parametrize(("grid", "side"), [(None, 4), (3, 3), (1, 1), (7, 7)])
def test_grids_are_brought_to_one_size(grid, side):
    parts = Tiny(tokens=4, seed=1), Tiny(tokens=16, width=8)
    fused = Fused(encoders=parts, grid=grid)
    assert (fused.info.tokens, fused.info.width) == (side**2, 24)
    for found, part in zip(alone(fused).split([16, 8], 2), parts, strict=True):
        close(found, resample(alone(part), side))


def test_resampling_keeps_rows_rows_and_the_mean():
    ramp = torch.arange(8.0)
    tokens = torch.stack([ramp.repeat(8), ramp.repeat_interleave(8)], 1)[None]  # column and row of each place
    assert resample(tokens, 8) is tokens
    half = resample(tokens, 4).view(4, 4, 2)
    close(half[..., 0], half[:1, :, 0].expand(4, 4))
    close(half[..., 1], half[:, :1, 1].expand(4, 4))
    assert (half[0, 1:, 0] > half[0, :-1, 0]).all()
    close(half.mean((0, 1)), tokens[0].mean(0))
    close(half[0, 1:3, 0], torch.tensor([2.5, 4.5]))
    double = resample(tokens, 16).view(16, 16, 2)
    close(double[0, 1:15, 0], torch.arange(0.25, 7.0, 0.5))
    close(double[1:15, 0, 1], torch.arange(0.25, 7.0, 0.5))
    assert resample(tokens.bfloat16(), 4).dtype == torch.bfloat16


def test_the_transform_gives_each_encoder_s_own_pixels_bit_for_bit():
    parts = vit(), Lite0(image_size=64, fit="pad"), Tiny(image_size=20)
    fused = Fused(encoders=parts, grid=2)
    for image in IMAGES:
        packed = pickle.loads(pickle.dumps(fused.transform()))(image)
        assert packed.dtype == torch.float32
        assert tuple(packed.shape) == fused.info.pixel_shape == fused.info.pixels
        expected = torch.cat([part.transform()(image).flatten() for part in parts])
        assert torch.equal(packed, expected)


def test_fused_encoders_can_be_fused_again():
    inner = Fused(encoders=(Tiny(), Tiny(width=8, image_size=20, seed=1)))
    fused = Fused(encoders=(inner, Tiny(tokens=9, width=4)))
    assert not encoder_problems(fused)
    close(alone(fused)[..., :24], resample(alone(inner), 3))
    close(alone(fused)[..., 24:], alone(fused.encoders[1]))


class Noisy(Tiny):
    """Drops features while it trains, as its author wants."""

    def forward(self, pixels):
        return nn.functional.dropout(super().forward(pixels), 0.5, self.training)


def test_each_encoder_keeps_its_own_rule_about_its_mode():
    fused = Fused(encoders=(Lite0(image_size=32), Noisy()))
    assert not any(part.training for part in fused.modules())
    fused.train()
    assert not any(part.training for part in fused.encoders[0].modules())
    assert fused.encoders[1].training
    assert not torch.equal(alone(fused)[..., -16:], alone(fused)[..., -16:])
    fused.eval()
    assert torch.equal(alone(fused), alone(fused))


def test_gradients_reach_what_trains_and_nothing_else():
    fused = Fused(encoders=(Tiny(), Tiny(seed=1)))
    fused.encoders[0].requires_grad_(False)
    fused(torch.stack([fused.transform()(image) for image in IMAGES])).square().sum().backward()
    assert fused.encoders[0].weight.grad is None
    assert fused.encoders[1].weight.grad.abs().sum() > 0


def test_the_fingerprint_sees_weights_order_and_options_of_those_inside():
    def of(*encoders, **options):
        fused = Fused(encoders=encoders, **options)
        return fingerprint(fused, "same")

    first = of(Tiny(), Tiny(seed=1))
    assert of(Tiny(), Tiny(seed=1)) == first
    others = {
        of(Tiny(seed=1), Tiny()),
        of(Tiny(), Tiny(seed=2)),
        of(Tiny(), Tiny(seed=1), join="sequence"),
        of(Tiny(), Tiny(seed=1), grid=3),
        of(Lite0(image_size=32, levels=(0,), grid=2), Tiny()),
        of(Lite0(image_size=32, levels=(0,), grid=1), Tiny(), grid=2),
    }
    assert len(others | {first}) == 7
    changed = Fused(encoders=(Tiny(), Tiny(seed=1)))
    with torch.no_grad():
        changed.encoders[1].weight[0, 0, 0, 0] += 1e-6
    assert fingerprint(changed, "same") not in others | {first}
    assert fingerprint(Fused(encoders=(Lite0(image_size=32, grid=1), Tiny()), grid=2), "same") != fingerprint(
        Fused(encoders=(Lite0(image_size=32, grid=2), Tiny()), grid=2), "same"
    ), "an option that is in no weight"


def test_the_batch_for_the_store_goes_by_all_pixels():
    cpu = torch.device("cpu")

    def size(encoder):
        return Features(encoder, FeaturesSpec(store=False), "").batch_size(cpu)

    assert size(Tiny(image_size=128)) == 32
    assert size(Fused(encoders=(Tiny(image_size=128), Tiny(image_size=128, seed=1)))) == 16


class Odd(Tiny):
    def __init__(self, **changes):
        super().__init__()
        self.info = dataclasses.replace(self.info, **changes)


class Bytes(Tiny):
    def transform(self):
        return to_bytes


def to_bytes(image):
    return torch.zeros(3, 32, 32, dtype=torch.uint8)


class NoInfo(Tiny):
    def __init__(self):
        super().__init__()
        del self.info


@pytest.mark.parametrize(
    ("encoders", "options", "where", "message"),
    [
        ([], {}, "encoders", "Name two or more"),
        ([Tiny], {}, "encoders", "1 encoder"),
        ([Tiny, lambda: Odd(tokens=5)], {}, "encoders.1", r"5 tokens are no square grid\n.*join: sequence"),
        ([lambda: vit(prefix_tokens=True), Tiny], {}, "encoders.0", r"class and register tokens"),
        ([Tiny, Tiny], {"grid": 0}, "grid", "grid of 0"),
        ([Tiny, Tiny], {"grid": 3, "join": "sequence"}, "grid", r"grid of 3 .*`join: sequence`\n.*Leave it out"),
        ([Tiny, lambda: Tiny(width=8)], {"join": "sequence"}, "join", r"\(16, 8\)(.|\n)*`join: channel`"),
        ([Tiny, NoInfo], {}, "encoders.1", "not an EncoderInfo"),
    ],
)
def test_what_cannot_be_joined_is_refused(encoders, options, where, message):
    with pytest.raises(UserError, match=message) as caught:
        Fused(encoders=tuple(make() for make in encoders), **options)
    assert [problem.where for problem in caught.value.problems] == [f"model.encoder.{where}"]


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(UserError) as caught:
        Fused(encoders=(Odd(tokens=5), NoInfo(), Odd(tokens=7)), grid=-1)
    places = ["grid", "encoders.0", "encoders.1", "encoders.2"]
    assert [problem.where for problem in caught.value.problems] == [f"model.encoder.{place}" for place in places]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: Odd(tokens=9), r"\(3, 4, 16\), promised \(3, 9, 16\)"),
        (lambda: Odd(width=8), r"\(3, 4, 16\), promised \(3, 4, 8\)"),
        (lambda: Odd(image_size=16), r"float32 \(3, 32, 32\), promised float32 \(3, 16, 16\)"),
        (Bytes, r"uint8 \(3, 32, 32\), promised float32"),
    ],
)
def test_a_broken_promise_names_the_encoder(broken, message):
    fused = Fused(encoders=(Tiny(), broken()))
    with pytest.raises(UserError, match=message) as caught:
        alone(fused)
    assert caught.value.problems[0].where == "model.encoder.encoders.1"


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"pixels": (3, 0)}, r"`info.pixels\[1\]` is 0"),
        ({"pixels": (3, 32, 31)}, r"\(3, 32, 32\), promised float32 \(3, 32, 31\)"),
    ],
)
def test_the_probe_looks_at_the_promised_pixels(info, message):
    problems = encoder_problems(Odd(**info))
    assert re.search(message, problems[0].message)
    assert not encoder_problems(Odd(pixels=(3, 32, 32)))
    assert EncoderInfo(1, 2, 8, "x").pixel_shape == (3, 8, 8)


def test_an_encoder_of_two_trains_with_the_assembly():
    spec = ModelSpec(
        encoder=PluginSpec("fused", {"encoders": ["tiny", {"name": "tiny", "seed": 3, "image_size": 20}]}),
        projector=PluginSpec("linear"),
        language=LanguageSpec("tiny:llama", lora=LoRASpec(rank=2)),
        train=("encoder", "projector"),
    )
    model = build_model(spec, folder=Path(), seed=0)
    names = {"encoder.encoders.0.weight", "encoder.encoders.1.weight"}
    assert names == {name for name in model.trainable() if name.startswith("encoder.")}
    before, print_ = model.snapshot(), model.fingerprint
    optimizer = torch.optim.SGD(model.trainable().values(), lr=0.1)
    (batch,) = model.pack(tiny_tasks()[0].train[:2])
    torch.nn.functional.cross_entropy(model(batch).logits, batch.targets).backward()
    optimizer.step()
    after = model.snapshot()
    assert all(not torch.equal(before[name], after[name]) for name in names)
    saved = {name: tensor.clone() for name, tensor in model.state().items()}
    assert names <= saved.keys()
    model.set_trainable(["projector"])
    assert model.fingerprint != print_
    fresh = build_model(spec, folder=Path(), seed=0)
    fresh.load_state(saved)
    fresh.set_trainable(["projector"])
    assert fresh.fingerprint == model.fingerprint
    images = [sample.images[0] for sample in tiny_tasks()[0].test]
    assert all(map(torch.equal, fresh.image_features(images), model.image_features(images)))


def test_a_run_from_a_recipe_with_frozen_and_stored_features(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))
    result = run(
        model={
            "encoder": {"name": "fused", "encoders": ["tiny", {"name": "tiny", "tokens": 9, "seed": 1}]},
            "projector": "mlp",
            "language": {"weights": "tiny:llama", "lora": {"rank": 2}},
        },
        stream={"name": "shapes", "tasks": ["colour"], "train_size": 8, "test_size": 4},
        evaluate={"zero_shot": False},
        out=tmp_path / "run",
        progress=False,
    )
    assert result.matrix().values[0][0] is not None
    assert len([path for path in (tmp_path / "cache" / "features").iterdir() if path.is_dir()]) == 1
    page = result.report().read_text()
    assert "fused (encoders tiny, tiny (tokens 9, seed 1))" in page
