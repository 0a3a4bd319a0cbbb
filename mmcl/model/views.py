"""Images that an encoder looks at in several views, such as tiles; most encoders have one view per image.

A view is what one forward pass of the encoder takes: pixels of `info.pixel_shape` -> features [T, W]. How many views an
image has depends on its size alone, so that rows can be planned before any image is encoded. An encoder with a `grid`
sees an image as one, in its own shape; its views are the cells of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmcl.data.types import ImageSource
from mmcl.errors import UserError
from mmcl.protocols import Encoder

CELLS = 64
"""Cells of a grid that a store keeps as one entry: an image has hundreds."""


def has_views(encoder: nn.Module) -> bool:
    """Whether images may have several, each on its own."""
    return callable(getattr(encoder, "views", None))


def has_grid(encoder: nn.Module) -> bool:
    """Whether images are seen as one, in their own shape."""
    return callable(getattr(encoder, "grid", None))


def count_views(encoder: nn.Module, size: tuple[int, int]) -> int:
    """Views of an image of (width, height)."""
    each: Any = encoder
    if has_grid(encoder):
        rows, columns = each.grid(size)
        return int(rows * columns)
    return int(each.views(size)) if has_views(encoder) else 1


class Views:
    """Counts the views of images, looking at each image's size once.

    Args:
        encoder: follows `mmcl.protocols.Encoder`.

    Attributes:
        whole: whether an image is seen as one, in its own shape.
        per_entry: views that a store keeps as one entry.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.info = cast(Encoder, encoder).info
        self.whole = has_grid(encoder)
        self.per_entry = CELLS if self.whole else 1
        self._one = not self.whole and not has_views(encoder)
        self._encoder = encoder
        self._known: dict[str, int] = {}

    def of(self, image: ImageSource, fingerprint: str) -> int:
        """How many; of an image that is there as features, as many as these are of.

        Args:
            image: is opened for its size if the encoder has views.
            fingerprint: of the encoder.
        """
        if self._one:
            return 1
        stored = image.stored_features(fingerprint)
        if stored is not None:
            return len(stored) // self.info.tokens
        if image.digest not in self._known:
            self._known[image.digest] = count_views(self._encoder, image.dimensions)
        return self._known[image.digest]

    def names(self, image: ImageSource, fingerprint: str) -> list[str]:
        """A name for each entry of a store of features."""
        if self._one:
            return [image.digest]
        count = -(-self.of(image, fingerprint) // self.per_entry)
        return [f"{image.digest} {number}/{count}" for number in range(count)]

    def split(self, pixels: Tensor, where: str) -> Sequence[Tensor]:
        """What a transform made of one image, by what a forward pass takes: each view, or the whole grid.

        Raises:
            UserError: it is of another shape.
        """
        expected: tuple[Any, ...] = self.info.pixel_shape
        before = 2 if self.whole else 0 if self._one else 1
        if pixels.ndim == len(expected) + before and tuple(pixels.shape[before:]) == expected:
            return list(pixels) if before == 1 else [pixels]
        promised = (*("rows", "columns")[:before], *expected) if self.whole else (*("views",)[:before], *expected)
        raise UserError(
            f"the transform made {tuple(pixels.shape)}, promised {promised}",
            where=where,
            hint="an encoder's transform must give every view the size that its `info` says",
        )

    def entries(self, features: Tensor) -> Tensor:
        """Features of one image's cells [V, T, W] -> entries of a store [E, per_entry * T, W], the last filled up."""
        missing = -len(features) % self.per_entry
        filled = torch.cat([features, features.new_zeros(missing, *features.shape[1:])])
        return filled.view(-1, self.per_entry * features.shape[1], features.shape[2])


def join(features: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Features of views [V, T, W], image after image -> of each image [its views * T, W]."""
    return [part.flatten(0, 1) for part in torch.split(features, list(counts))]
