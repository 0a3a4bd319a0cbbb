"""Questions with other pictures: a blank one, a foreign one, the own one with its visual tokens in disorder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from mmcl.data.images import BytesImage, Renamed
from mmcl.data.types import ImageSource, Sample, Samples
from mmcl.evaluation.confusion import plain

if TYPE_CHECKING:
    from mmcl.model.assembly import Assembly

GREY = (128, 128, 128)
TRIED = 64
"""Samples that are looked through for a partner with another answer."""


class Disordered(Renamed):
    """An image whose features come in another order.

    Args:
        image: the image.
        features: its own features, [views * T, W].
        fingerprint: of the encoder that gave them.
    """

    def __init__(self, image: ImageSource, features: Tensor, fingerprint: str) -> None:
        super().__init__(image, "disordered")
        generator = torch.Generator().manual_seed(int(self.digest[:15], 16))
        self._features = features[torch.randperm(len(features), generator=generator).to(features.device)]
        self._fingerprint = fingerprint

    def stored_features(self, fingerprint: str) -> Tensor | None:
        """The features in disorder."""
        return self._features if fingerprint == self._fingerprint else None


def disordered(model: Assembly, samples: Samples) -> list[Sample]:
    """The samples with their visual tokens in a random order, the same for each call; the encoder must be frozen."""
    images = {image.digest: image for sample in samples for image in sample.images}
    features = model.image_features(list(images.values()))
    found = {
        digest: Disordered(image, own, model.fingerprint)
        for (digest, image), own in zip(images.items(), features, strict=True)
    }
    return [sample.replace(images=tuple(found[image.digest] for image in sample.images)) for sample in samples]


def blank(samples: Samples) -> list[Sample]:
    """The samples with grey images of the same size."""
    return [sample.replace(images=tuple(_grey(image.dimensions) for image in sample.images)) for sample in samples]


def foreign(samples: Samples, others: Samples) -> list[Sample]:
    """The samples with images of others, none with its own; with blank ones where the others have no other.

    Args:
        samples: with images.
        others: of another task.
    """
    pool = list({image.digest: image for sample in others for image in sample.images}.values())
    return [_from(pool, place, sample) for place, sample in enumerate(samples)]


def partners(samples: Samples, among: Samples) -> list[Sample]:
    """The samples with the images of others of their task, of such as have another answer, if there are any."""
    with_images = [other for other in among if other.images]
    return [_partner(sample, place, with_images) for place, sample in enumerate(samples)]


def _partner(sample: Sample, place: int, among: Sequence[Sample]) -> Sample:
    own = {image.digest for image in sample.images}
    answers = set(map(plain, sample.answers))
    tried = [among[(place + step) % len(among)] for step in range(1, min(TRIED, len(among)) + 1)] if among else []
    other = [each for each in tried if own.isdisjoint(image.digest for image in each.images)]
    best = [each for each in other if answers.isdisjoint(map(plain, each.answers))]
    pool = [image for each in (best or other)[:1] for image in each.images]
    return _from(pool, 0, sample)


def _from(pool: Sequence[ImageSource], place: int, sample: Sample) -> Sample:
    own = {image.digest for image in sample.images}
    images = []
    for number, image in enumerate(sample.images):
        around = (pool[(place + number + step) % len(pool)] for step in range(len(pool)))
        images.append(next((each for each in around if each.digest not in own), _grey(image.dimensions)))
    return sample.replace(images=tuple(images))


@lru_cache(maxsize=256)
def _grey(size: tuple[int, int]) -> BytesImage:
    buffer = io.BytesIO()
    Image.new("RGB", size, GREY).save(buffer, "PNG")
    return BytesImage(buffer.getvalue(), f"blank-{size[0]}x{size[1]}.png")
