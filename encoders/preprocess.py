"""From a PIL image to the pixels that an encoder was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Fit = Literal["squash", "pad", "crop"]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Resize to a square, scale to [0, 1], normalise. Picklable, so that data loaders' workers can take it along.

    Attributes:
        size: height and width of the result, in pixels.
        mean: per channel, subtracted.
        std: per channel, divided by.
        interpolation: a name of `PIL.Image.Resampling`, in lower case.
        fit: how an image that is no square becomes one. `squash` ignores its aspect ratio; `pad` puts it in the middle
            of a square of the mean colour; `crop` cuts the middle out. Questions may ask about every part of an image,
            hence no encoder here crops by default. Squashing lost nothing against padding in Prismatic VLMs
            (arXiv 2402.07865, section 4.2), and spends no token on padding.
        crop: share of the shorter side that `crop` keeps.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    fit: Fit = "squash"
    crop: float = 1.0

    def __call__(self, image: Image.Image) -> Tensor:
        """An image of any size -> float32 [3, size, size]."""
        rgb = image.convert("RGB")
        width, height = rgb.size
        box: tuple[float, float, float, float] = (0, 0, width, height)
        target = (self.size, self.size)
        if self.fit == "crop":
            side = min(width, height) * self.crop
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
        elif self.fit == "pad":
            scale = self.size / max(width, height)
            target = (max(1, round(width * scale)), max(1, round(height * scale)))
        resized = rgb.resize(target, Image.Resampling[self.interpolation.upper()], box=box)
        if target != (self.size, self.size):
            colour = tuple(round(255 * channel) for channel in self.mean)
            canvas = Image.new("RGB", (self.size, self.size), colour)
            canvas.paste(resized, ((self.size - target[0]) // 2, (self.size - target[1]) // 2))
            resized = canvas
        values = np.asarray(resized, dtype=np.float32) / np.float32(255)
        normal = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)  # [H, W, 3]
        return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))
