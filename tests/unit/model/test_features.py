"""Features in the store: whatever the output depends on makes another key, and a hit is what would be computed."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmcl.data.images import BytesImage, FileImage
from mmcl.encoders.lite0 import Lite0
from mmcl.encoders.tiny import Tiny
from mmcl.errors import UserError
from mmcl.fetch import cache_folder
from mmcl.model.features import Features, fingerprint
from mmcl.model.identity import code_of
from mmcl.recipe import registry
from mmcl.recipe.spec import FeaturesSpec, PluginSpec

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))
    return cache_folder() / "features"


def picture(number: int) -> BytesImage:
    data = bytes((number * 37 + k * 11) % 256 for k in range(3 * 20 * 14))
    buffer = io.BytesIO()
    Image.frombytes("RGB", (20, 14), data).save(buffer, "PNG")
    return BytesImage(buffer.getvalue(), f"{number}.png")


def features_of(encoder: Any, **options: Any) -> Features:
    return Features(encoder, FeaturesSpec(**options), fingerprint(encoder, encoder.info.source))


def keys(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


class Counting(Tiny):
    """Counts its batches."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        object.__setattr__(self, "batches", [])

    def forward(self, pixels: Tensor) -> Tensor:
        self.__dict__["batches"].append(len(pixels))
        return super().forward(pixels)


def test_another_process_finds_what_was_computed(cache: Path) -> None:
    images = [picture(n) for n in range(70)]
    cold = features_of(Tiny()).get(images, CPU)
    warm = features_of(Tiny())
    assert warm.missing(images, CPU) == []
    assert all(torch.equal(cold[digest], value) for digest, value in warm.get(images, CPU).items())
    assert len(cold) == 70
    assert len(keys(cache)) == 1
    assert features_of(Tiny(), store=False).missing(images, CPU) == images


@pytest.mark.parametrize("make", [Tiny, lambda: Lite0(image_size=64)], ids=["tiny", "lite0"])
def test_what_lies_beside_an_image_does_not_change_its_bits(make: Any) -> None:
    images = [picture(n) for n in range(40)]
    together = features_of(make(), store=False).get(images, CPU)
    some = features_of(make(), store=False)
    for chosen in (images[3:4], images[::-3], images):
        assert all(torch.equal(together[digest], value) for digest, value in some.get(chosen, CPU).items())


def test_changed_weights_have_another_key(cache: Path) -> None:
    encoder = Tiny()
    before = features_of(encoder)
    old = before.get([picture(0)], CPU)
    assert not before.stale(encoder)
    with torch.no_grad():
        encoder.weight += 1e-6
    assert before.stale(encoder)
    before.renew(encoder, fingerprint(encoder, encoder.info.source))
    assert not before.stale(encoder)
    assert before.missing([picture(0)], CPU)
    assert not torch.equal(before.get([picture(0)], CPU)[picture(0).digest], old[picture(0).digest])
    assert len(keys(cache)) == 2


def test_an_option_that_is_in_no_weight_has_another_key(cache: Path) -> None:
    one, other = Lite0(image_size=32, levels=(0, 1), grid=2), Lite0(image_size=32, levels=(0, 1), grid=1)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert fingerprint(one, "same") != fingerprint(other, "same")
    features_of(one).get([picture(0)], CPU)
    assert features_of(other).missing([picture(0)], CPU)
    assert len(keys(cache)) == 2


ENCODER = """
import torch
from torch import nn
from mmcl.protocols import EncoderInfo

def transform(image):
    data = torch.frombuffer(bytearray(image.resize((8, 8), {filter}).tobytes()), dtype=torch.uint8)
    return data.reshape(8, 8, 3).permute(2, 0, 1).float() / 255

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.info = EncoderInfo(tokens=4, width=3, image_size=8, source="mine")

    def transform(self):
        return transform

    def forward(self, pixels):  # {comment}
        return {output}nn.functional.avg_pool2d(pixels, 4).flatten(2).transpose(1, 2)
"""


def written(path: Path, **changes: str) -> Any:
    """The class as it stands in the file now, as a new process would find it."""
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(path)]:
        del sys.modules[name]
    path.write_text(ENCODER.format(**{"filter": "2", "output": "", "comment": "", **changes}))
    return registry.build("encoders", PluginSpec(f"./{path.name}:Mine"), path.parent)


@pytest.mark.parametrize("change", [{"filter": "0"}, {"output": "2 * "}, {"comment": "said otherwise"}])
def test_changed_code_of_the_same_name_has_another_key(cache: Path, tmp_path: Path, change: dict[str, str]) -> None:
    path = tmp_path / "mine.py"
    features_of(written(path)).get([picture(0)], CPU)
    assert not features_of(written(path)).missing([picture(0)], CPU)
    assert features_of(written(path, **change)).missing([picture(0)], CPU)


def test_outputs_tell_what_the_source_does_not(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library below may change while class, options, weights and source stay."""
    features_of(Tiny()).get([picture(0)], CPU)
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *_, box=None, **__: resize(self, size, Image.Resampling.NEAREST)
    )
    assert features_of(Tiny()).missing([picture(0)], CPU)


def test_weights_and_source_count_even_where_the_outputs_on_the_probes_do_not_tell(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Tiny()
    features_of(encoder).get([picture(0)], CPU)
    assert Features(encoder, FeaturesSpec(), "other weights").missing([picture(0)], CPU)
    code = code_of({"mmcl.encoders.lite0"})
    assert {"mmcl.encoders.lite0", "mmcl.encoders.pooling", "mmcl.encoders.preprocess"} <= code.keys()
    monkeypatch.setattr("mmcl.model.identity.code_of", lambda modules: {name: "edited" for name in modules})
    assert features_of(encoder).missing([picture(0)], CPU)


def test_changed_bytes_under_the_same_path(tmp_path: Path) -> None:
    encoder = Tiny()
    (tmp_path / "a.png").write_bytes(picture(0).read())
    old = FileImage(tmp_path, "a.png")
    before = features_of(encoder).get([old], CPU)[old.digest]
    (tmp_path / "a.png").write_bytes(picture(1).read())
    new = FileImage(tmp_path, "a.png")
    assert not torch.equal(features_of(encoder).get([new], CPU)[new.digest], before)
    late = FileImage(tmp_path, "a.png")
    assert late.digest  # taken before the file changes once more
    (tmp_path / "a.png").write_bytes(picture(2).read())
    with pytest.raises(UserError, match=r"a\.png(.|\n)*changed"):
        features_of(Tiny(seed=1)).get([late], CPU)


def test_rounded_features_are_the_same_cold_and_warm_and_the_loss_is_told(cache: Path) -> None:
    images = [picture(n) for n in range(5)]
    exact = features_of(Tiny(), store=False).get(images, CPU)
    for dtype in ("fp16", "int8"):
        cold, warm = features_of(Tiny(), dtype=dtype), features_of(Tiny(), dtype=dtype)
        values = cold.get(images, CPU)
        again = warm.get(images, CPU)
        assert all(torch.equal(values[d], again[d]) and not torch.equal(values[d], exact[d]) for d in exact)
        unstored = features_of(Tiny(), dtype=dtype, store=False).get(images, CPU)
        assert all(torch.equal(values[d], unstored[d]) for d in exact)
        for told in (cold, warm):
            lines: list[str] = []
            told.tell(lines.append)
            told.tell(lines.append)
            assert len(lines) == 1
            assert f"kept as {dtype}: off by 0." in lines[0]
            assert "5 images" in lines[0]
    assert len(keys(cache)) == 2


def test_a_cache_that_cannot_be_written_is_said_and_memory_serves(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    encoder = Counting()
    features = features_of(encoder)
    first = features.get([picture(0)], CPU)
    count = len(encoder.__dict__["batches"])
    again = features.get([picture(0)], CPU)
    assert torch.equal(first[picture(0).digest], again[picture(0).digest])
    assert len(encoder.__dict__["batches"]) == count
    lines: list[str] = []
    features.tell(lines.append)
    assert "MMCL_CACHE" in lines[0]


def test_what_does_not_fit_is_said_and_kept_in_memory() -> None:
    images = [picture(n) for n in range(200)]
    features = features_of(Tiny(), limit_gb=30e-6)
    values = features.get(images, CPU)
    assert features.missing(images, CPU) == []
    assert all(torch.equal(values[d], value) for d, value in features.get(images, CPU).items())
    lines: list[str] = []
    features.tell(lines.append)
    assert "limit_gb" in lines[0]
