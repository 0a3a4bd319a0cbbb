"""Any resolution: an encoder looks at an image tile by tile, and at the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn

from mmcl.errors import UserError
from mmcl.protocols import Encoder, EncoderInfo

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tiles:
    """Cuts an image into tiles of the encoder's own size. Picklable if the encoder's transform is.

    Attributes:
        transform: of the encoder; it gets squares of `side` pixels, and the whole image for the thumbnail.
        side: of a tile, in pixels.
        fewest: tiles, at least.
        most: tiles, at most; the thumbnail comes on top.
        thumbnail: whether an image of several tiles is also seen as a whole.
    """

    transform: Callable[[Image], Tensor]
    side: int
    fewest: int
    most: int
    thumbnail: bool

    def grid(self, size: Size) -> Size:
        """Columns and rows for an image of (width, height): the grid whose aspect ratio is nearest.

        Of equally near ones, such as 1 x 1 and 2 x 2, the one with most tiles whose pixels the image at least half
        fills: a small image is not cut finer.
        """
        width, height = size
        best, least = (1, 1), None
        for rows in range(1, self.most + 1):
            for columns in range(1, self.most // rows + 1):
                if columns * rows < self.fewest:
                    continue
                # |w / h - c / r|, times h r: the factor h is the same for all, r is not
                distance = abs(width * rows - height * columns) / rows
                finer = 2 * width * height > columns * rows * self.side**2 and columns * rows > best[0] * best[1]
                if least is None or distance < least or (distance == least and finer):
                    best, least = (columns, rows), distance
        return best

    def count(self, size: Size) -> int:
        """Views of an image of (width, height)."""
        columns, rows = self.grid(size)
        return columns * rows + (self.thumbnail and columns * rows > 1)

    def __call__(self, image: Image) -> Tensor:
        """An image -> pixels [views, ...]: the tiles row by row, and the thumbnail last."""
        image = image.convert("RGB")
        columns, rows = self.grid(image.size)
        side = self.side
        if columns * rows == 1:
            return self.transform(image)[None]
        whole = image.resize((columns * side, rows * side), Resampling.BICUBIC)
        boxes = [(x * side, y * side, (x + 1) * side, (y + 1) * side) for y in range(rows) for x in range(columns)]
        views = [whole.crop(box) for box in boxes] + ([image] if self.thumbnail else [])
        return torch.stack([self.transform(view) for view in views])


class Tiled(nn.Module):
    """Looks at an image in tiles of the encoder's own size, and once as a whole, so that small things stay visible.

    The image is resized to the grid of tiles whose aspect ratio is nearest to its own, as InternVL 1.5 does (arXiv
    2404.16821, section 3.2, up to 12 tiles in training); LLaVA-NeXT has such grids too. Each tile is an image of its
    own to the encoder and the projector; an image's tokens are those of its tiles, row by row, then those of the whole,
    so an image of n > 1 tiles takes n + 1 times as many tokens. A small square image stays one view.

    Args:
        encoder: written as an encoder of a recipe.
        max_tiles: at most so many tiles.
        min_tiles: at least so many tiles.
        thumbnail: also look at the whole image, if it has several tiles.
    """

    def __init__(self, *, encoder: Encoder, max_tiles: int = 6, min_tiles: int = 1, thumbnail: bool = True) -> None:
        super().__init__()
        if not 1 <= min_tiles <= max_tiles:
            raise UserError(
                f"from {min_tiles} to {max_tiles} tiles is no range",
                where="model.encoder.max_tiles",
                hint="1 <= min_tiles <= max_tiles",
            )
        info = encoder.info
        if callable(getattr(encoder, "views", None)) or info.pixels:
            raise UserError(
                f"{type(encoder).__name__} does not take one square image, so there are no tiles for it",
                where="model.encoder.encoder",
                hint="put `tiled` around a plain encoder",
            )
        self.encoder = cast(nn.Module, encoder)
        self._tiles = Tiles(encoder.transform(), info.image_size, min_tiles, max_tiles, thumbnail)
        self.info = EncoderInfo(
            tokens=info.tokens,
            width=info.width,
            image_size=info.image_size,
            source=f"tiled({info.source})",
        )
        self.eval()

    def transform(self) -> Callable[[Image], Tensor]:
        """An image -> pixels [views, 3, S, S]."""
        return self._tiles

    def views(self, size: Size) -> int:
        """Views of an image of (width, height), in pixels."""
        return self._tiles.count(size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels of views [V, 3, S, S] -> features [V, T, W]."""
        return cast(Tensor, self.encoder(pixels))
