"""From samples to records: what each would take, and then, for those that stay, the record itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mmcl.data.images import BytesImage
from mmcl.data.types import ImageSource, Sample, Samples
from mmcl.memory.quota import Size
from mmcl.memory.records import (
    DTYPES,
    FeatureType,
    Record,
    TopLogits,
    features_digest,
    features_overhead,
    image_bytes,
    store_features,
)


@dataclass(frozen=True, slots=True)
class FeatureSource:
    """Where `store="features"` gets encoder outputs from.

    Attributes:
        compute: features [T, W] of each image; T may differ.
        shape: (T, W) of an image.
        fingerprint: of the encoder.
    """

    compute: Callable[[Sequence[ImageSource]], Sequence[Tensor]]
    shape: Callable[[ImageSource], tuple[int, int]]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class LogitSource:
    """Where teacher logits come from, if they are kept.

    Attributes:
        compute: the distributions at the answers of samples, in the form in which they will be replayed.
        positions: how many positions that is for one sample.
        k: entries kept per position.
    """

    compute: Callable[[Samples], Sequence[TopLogits]]
    positions: Callable[[Sample], int]
    k: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A held record, or one that asks for a place and still lacks images and logits.

    Attributes:
        record: the record.
        new: whether it asks for a place.
        images: those that it will keep something of, if it is new.
    """

    record: Record
    new: bool = False
    images: tuple[ImageSource, ...] = ()


@dataclass(frozen=True, slots=True)
class Intake:
    """Sizes and makes records.

    Attributes:
        features: keep encoder outputs in place of pixels.
        logits: keep the teacher's distribution.
        feature_dtype: of encoder outputs.
    """

    features: FeatureSource | None = None
    logits: LogitSource | None = None
    feature_dtype: FeatureType = "fp32"

    def size(self, entry: Entry) -> Size:
        """Bytes of an entry; of a new one, those that its record will have, before anything is kept."""
        if not entry.new:
            images = {image.digest: image_bytes(image)[1] for image in entry.record.images}
            return sum(entry.record.own_sizes().values()), images
        logits = 0
        if self.logits is not None:
            sample = entry.record.sample().replace(images=entry.images)
            logits = TopLogits.size(self.logits.positions(sample), self.logits.k)
        own = entry.record.own_sizes(images=len(entry.images), logits=logits)
        return sum(own.values()), dict(map(self._image_size, entry.images))

    def _image_size(self, image: ImageSource) -> tuple[str, int]:
        if self.features is None:
            return image.digest, image_bytes(image)[1]
        dtype = DTYPES[self.feature_dtype]
        tokens, width = self.features.shape(image)
        size = tokens * width * dtype.itemsize + features_overhead(image.name, self.features.fingerprint)
        return features_digest(image.digest, dtype), size

    def build(self, entries: Sequence[Entry]) -> list[Record]:
        """Complete records of new entries."""
        stored = self._stored({image.digest: image for entry in entries for image in entry.images})
        records = [
            dataclasses.replace(entry.record, images=tuple(stored[image.digest] for image in entry.images))
            for entry in entries
        ]
        if self.logits is None or not records:
            return records
        made = self.logits.compute([record.sample() for record in records])
        return [dataclasses.replace(record, logits=top) for record, top in zip(records, made, strict=True)]

    def _stored(self, images: Mapping[str, ImageSource]) -> dict[str, ImageSource]:
        """What is kept of each image, by the image's digest."""
        source = self.features
        if source is None:
            return {digest: BytesImage(image.read(), image.name) for digest, image in images.items()}
        tensors = source.compute(list(images.values())) if images else ()
        return {
            digest: store_features(image, tensor, fingerprint=source.fingerprint, dtype=self.feature_dtype)
            for (digest, image), tensor in zip(images.items(), tensors, strict=True)
        }
