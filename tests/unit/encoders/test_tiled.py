"""Tiles: the grid, the pixels, and rows with images of different lengths."""

from __future__ import annotations

import dataclasses
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmcl.data.images import BytesImage
from mmcl.data.types import Sample, Turn
from mmcl.errors import UserError
from mmcl.model.assembly import Assembly
from mmcl.model.build import build_model
from mmcl.model.features import Features, fingerprint
from mmcl.protocols import Route
from mmcl.recipe import registry
from mmcl.recipe.spec import FeaturesSpec, LanguageSpec, LoRASpec, ModelSpec, PluginSpec
from mmcl.training.objectives.answers import Answers

TINY = {"name": "tiny", "image_size": 16, "tokens": 4, "width": 8}


def tiled(**options: Any) -> Any:
    return registry.build("encoders", PluginSpec("tiled", {"encoder": TINY, **options}), Path(), seed=0)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


def encoded(image: Image.Image) -> BytesImage:
    import io

    out = io.BytesIO()
    image.save(out, "PNG")
    return BytesImage(out.getvalue(), "picture.png")


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((16, 16), (1, 1)),  # small: not cut
        ((100, 100), (2, 2)),
        ((200, 100), (2, 1)),
        ((100, 300), (1, 3)),
        ((300, 200), (3, 2)),
        ((1000, 10), (6, 1)),
        ((130, 100), (3, 2)),
        ((120, 100), (2, 2)),  # 1.2 lies nearer to 1 than to 1.5
    ],
)
def test_the_grid_has_the_nearest_aspect_ratio(size: tuple[int, int], grid: tuple[int, int]) -> None:
    tiles = tiled().transform()
    assert tiles.grid(size) == grid
    assert tiles.count(size) == grid[0] * grid[1] + (grid != (1, 1))


def test_bounds_are_kept() -> None:
    assert tiled(max_tiles=1).views((900, 100)) == 1
    assert tiled(min_tiles=3, thumbnail=False).views((100, 100)) == 4
    assert tiled(max_tiles=12).views((1200, 100)) == 13


def test_tiles_are_the_image_row_by_row_and_then_the_whole() -> None:
    encoder = tiled()
    image = picture(48, 32)  # three by two tiles of 16: no resizing at all
    pixels = pickle.loads(pickle.dumps(encoder.transform()))(image)
    inner = encoder.encoder.transform()
    boxes = [(0, 0), (16, 0), (32, 0), (0, 16), (16, 16), (32, 16)]
    expected = [inner(image.crop((x, y, x + 16, y + 16))) for x, y in boxes] + [inner(image)]
    assert torch.equal(pixels, torch.stack(expected))
    assert torch.equal(encoder(pixels), encoder.encoder(torch.stack(expected)))


def test_what_can_not_be_tiled() -> None:
    with pytest.raises(UserError, match="from 4 to 2 tiles is no range"):
        tiled(min_tiles=4, max_tiles=2)
    with pytest.raises(UserError, match="does not take one square image"):
        registry.build("encoders", PluginSpec("tiled", {"encoder": {"name": "tiled", "encoder": "tiny"}}), Path())


@pytest.fixture
def model() -> Assembly:
    spec = ModelSpec(
        encoder=PluginSpec("tiled", {"encoder": TINY}),
        projector=PluginSpec("mlp"),
        language=LanguageSpec("tiny:llama", lora=LoRASpec(rank=2)),
        features=FeaturesSpec(store=False),
    )
    return build_model(spec, folder=Path(), seed=0)


SIZES = [(16, 16), (48, 32), (32, 16), (48, 32), (16, 48)]


def samples() -> list[Sample]:
    """Images of 1, 7, 3, 7 and 4 views, two questions each, one with two images."""
    images = [encoded(picture(*size, seed=seed)) for seed, size in enumerate(SIZES)]
    result = [
        Sample(f"{k} {q}", "t", (Turn("user", f"<image>what {q}?"), Turn("assistant", f"it is {q}")), (image,))
        for k, image in enumerate(images)
        for q in ("shape", "colour")
    ]
    both = (Turn("user", "<image>and <image>which?"), Turn("assistant", "both"))
    return [*result, Sample("both", "t", both, (images[1], images[0]))]


def test_rows_hold_images_of_different_lengths(model: Assembly) -> None:
    """Packed = one by one, loss and gradients, with experts for some images; every image has its own length."""
    model.add_expert("other", torch.nn.Linear(8, model.language.config.hidden_size))
    given = samples()
    routes = [Route((("other", 1.0),)) if k % 3 == 0 else Route() for k in range(len(given))]
    assert [model.views(sample.images[0]) for sample in given[:10:2]] == [1, 7, 3, 7, 4]

    def run(groups: list[list[int]]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        total = 0.0
        for group in groups:
            for batch in model.pack([given[k] for k in group], [routes[k] for k in group]):
                loss = Answers().loss(model, batch, model.forward(batch))["tokens"].total
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        gradient = [p.grad.flatten() for p in model.trainable().values() if p.grad is not None]
        return total, torch.cat(gradient)

    packed, alone = run([list(range(len(given)))]), run([[k] for k in range(len(given))])
    assert packed[0] == pytest.approx(alone[0], rel=1e-5)
    assert torch.allclose(packed[1], alone[1], rtol=1e-3, atol=1e-5)
    (batch,) = model.pack([given[2]])
    assert int(batch.is_image.sum()) == 7 * 4
    pixels = model.encoder.transform()(given[2].images[0].open())  # type: ignore[operator]
    expected = model.projector(model.encoder(pixels)).flatten(0, 1)  # view after view
    assert torch.allclose(model.inputs(batch)["inputs_embeds"][batch.is_image], expected, atol=1e-6)


def test_the_stored_features_are_those_of_the_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path))
    encoder = tiled()
    images = [encoded(picture(*size, seed=seed)) for seed, size in enumerate(SIZES)]
    cpu = torch.device("cpu")
    mark = fingerprint(encoder, encoder.info.source)
    first = Features(encoder, FeaturesSpec(), mark)
    assert len(first.missing(images, cpu)) == 5
    cold = first.get(images[:3], cpu)
    second = Features(encoder, FeaturesSpec(), mark)
    assert [image.digest for image in second.missing(images, cpu)] == [image.digest for image in images[3:]]
    warm = second.get(images, cpu)
    for image, size in zip(images, SIZES, strict=True):
        expected = encoder(encoder.transform()(image.open())).flatten(0, 1)
        assert warm[image.digest].shape == (encoder.views(size) * 4, 8)
        assert torch.allclose(warm[image.digest], expected, atol=1e-6)
    assert all(torch.equal(cold[digest], warm[digest]) for digest in cold)


def test_a_transform_that_breaks_its_word(model: Assembly) -> None:
    tiles = model.encoder._tiles
    model.features.transform = dataclasses.replace(tiles, most=1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the transform made 1 views, promised 7"):
        model.image_features([samples()[2].images[0]])


def test_a_training_encoder_sees_the_same(model: Assembly) -> None:
    images = [sample.images[0] for sample in samples()[:4:2]]
    frozen = model.image_features(images)
    model.set_trainable(["encoder"])
    trained = model.image_features(images)
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(frozen, trained, strict=True))
