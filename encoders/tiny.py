"""A random encoder for tests and dry runs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from mmcl.errors import UserError
from mmcl.protocols import EncoderInfo

from .preprocess import Preprocess

_CELLS = 2


class Tiny(nn.Module):
    """Random weights, next to no time, yet it sees colour and place: for tests and dry runs.

    Each token is a random linear map of the mean colours of the four quarters of its patch.

    Args:
        tokens: per image; a square number.
        width: of each token.
        image_size: in pixels.
        seed: of the random map.
    """

    def __init__(self, *, tokens: int = 4, width: int = 16, image_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.grid = math.isqrt(max(tokens, 0))
        if tokens < 1 or self.grid**2 != tokens:
            raise UserError(f"{tokens} is no square number", where="model.encoder.tokens", hint="1, 4, 9, 16 ...")
        if width < 1 or image_size < _CELLS * self.grid:
            raise UserError(
                f"width {width} or image_size {image_size} is too small",
                where="model.encoder",
                hint=f"{tokens} tokens need {_CELLS * self.grid} pixels or more",
            )
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(width, 3, _CELLS, _CELLS, generator=generator) / _CELLS)
        self.info = EncoderInfo(tokens=tokens, width=width, image_size=image_size, source=f"random:{seed}")
        self._transform = Preprocess(
            size=image_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"
        )
        self.eval()

    def transform(self) -> Callable[[Image], Tensor]:
        """(x / 255 - 0.5) / 0.5."""
        return self._transform

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [I, 3, S, S] -> features [I, tokens, width]."""
        cells = functional.adaptive_avg_pool2d(pixels, _CELLS * self.grid)  # [I, 3, 2 grid, 2 grid]
        features = functional.conv2d(cells, self.weight, stride=_CELLS)  # [I, W, grid, grid]
        return features.flatten(2).transpose(1, 2)
