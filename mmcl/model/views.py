"""Images that an encoder looks at in several views, such as tiles; most encoders have one view per image.

A view is what one forward pass of the encoder takes: pixels of `info.pixel_shape` -> features [T, W]. How many views an
image has depends on its size alone, so that rows can be planned before any image is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmcl.data.types import ImageSource
from mmcl.errors import UserError
from mmcl.protocols import Encoder


def has_views(encoder: nn.Module) -> bool:
    """Whether images may have several."""
    return callable(getattr(encoder, "views", None))


class Views:
    """Counts the views of images, looking at each image's size once.

    Args:
        encoder: follows `mmcl.protocols.Encoder`.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.info = cast(Encoder, encoder).info
        self._count: Callable[[tuple[int, int]], int] | None = getattr(encoder, "views", None)
        self._known: dict[str, int] = {}

    def of(self, image: ImageSource, fingerprint: str) -> int:
        """How many; of an image that is there as features, as many as these are of.

        Args:
            image: is opened for its size if the encoder has views.
            fingerprint: of the encoder.
        """
        if self._count is None:
            return 1
        stored = image.stored_features(fingerprint)
        if stored is not None:
            return len(stored) // self.info.tokens
        if image.digest not in self._known:
            self._known[image.digest] = self._count(image.open().size)
        return self._known[image.digest]

    def names(self, image: ImageSource, fingerprint: str) -> list[str]:
        """A name for each view, for stores of features."""
        if self._count is None:
            return [image.digest]
        count = self.of(image, fingerprint)
        return [f"{image.digest} {number}/{count}" for number in range(count)]

    def split(self, pixels: Tensor, where: str) -> Sequence[Tensor]:
        """What a transform made of one image, view by view, each of `info.pixel_shape`.

        Raises:
            UserError: it is of another shape.
        """
        expected: tuple[Any, ...] = self.info.pixel_shape
        if self._count is None:
            if tuple(pixels.shape) == expected:
                return [pixels]
        elif pixels.ndim == len(expected) + 1 and tuple(pixels.shape[1:]) == expected:
            return list(pixels)
        promised = expected if self._count is None else ("views", *expected)
        raise UserError(
            f"the transform made {tuple(pixels.shape)}, promised {promised}",
            where=where,
            hint="an encoder's transform must give every view the size that its `info` says",
        )


def join(features: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Features of views [V, T, W], image after image -> of each image [its views * T, W]."""
    return [part.flatten(0, 1) for part in torch.split(features, list(counts))]
