"""Several encoders on one image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from mmcl.errors import Problem, UserError
from mmcl.protocols import Encoder, EncoderInfo


@dataclass(frozen=True, slots=True)
class EachPixels:
    """The pixels of several encoders in one flat tensor. Picklable if the transforms are.

    Attributes:
        transforms: of the encoders.
        shapes: what each of them must return.
    """

    transforms: tuple[Callable[[Image], Tensor], ...]
    shapes: tuple[tuple[int, ...], ...]

    def __call__(self, image: Image) -> Tensor:
        """An image -> float32 [P], the pixels of each encoder one after another, exactly as its transform gives them.

        Raises:
            UserError: a transform gives something else than its encoder's `info` promises.
        """
        parts = []
        for index, (transform, shape) in enumerate(zip(self.transforms, self.shapes, strict=True)):
            part = transform(image)
            if part.dtype != torch.float32 or tuple(part.shape) != shape:
                raise UserError(
                    f"`transform()` gives {part.dtype} {tuple(part.shape)}, promised float32 {shape}",
                    where=_place(index),
                    hint="mend the transform, or what is promised (`info`)",
                )
            parts.append(part.flatten())
        return torch.cat(parts)


class Fused(nn.Module):
    """Two or more encoders on one image, joined by channel or one after another.

    Each encoder sees the pixels of its own transform: its image size, its normalisation. Language supervision and
    self-supervision complement each other: Prismatic VLMs (arXiv 2402.07865) join SigLIP and DINOv2 by channel, and
    Cambrian-1 (arXiv 2406.16860) brings grids of different sizes to one.

    Args:
        encoders: two or more, each written as an encoder of a recipe.
        join: `channel` puts the features of one place side by side: the width is the sum of the widths, and every
            encoder's tokens must be a square grid, row by row, without class and register tokens. `sequence` puts the
            tokens one after another: their number is the sum, and all encoders must have one width.
        grid: for `channel`, tokens per side to which all grids are resampled (bilinear, antialiased); default: that of
            the encoder with the most tokens.
    """

    def __init__(
        self,
        *,
        encoders: tuple[Encoder, ...],
        join: Literal["channel", "sequence"] = "channel",
        grid: int | None = None,
    ) -> None:
        super().__init__()
        problems = list(_problems(encoders, join, grid))
        if problems:
            raise UserError(problems=problems)
        infos = [encoder.info for encoder in encoders]
        self.encoders = nn.ModuleList(cast(Sequence[nn.Module], encoders))
        self.join = join
        self.grid = grid or max(math.isqrt(info.tokens) for info in infos)
        shapes = tuple(info.pixel_shape for info in infos)
        self._transform = EachPixels(tuple(encoder.transform() for encoder in encoders), shapes)
        self._sizes = [math.prod(shape) for shape in shapes]
        channel = join == "channel"
        self.info = EncoderInfo(
            tokens=self.grid**2 if channel else sum(info.tokens for info in infos),
            width=sum(info.width for info in infos) if channel else infos[0].width,
            image_size=max(info.image_size for info in infos),
            source=f"fused:{join}({' + '.join(info.source for info in infos)})",
            pixels=(sum(self._sizes),),
        )
        self.eval()

    def transform(self) -> Callable[[Image], Tensor]:
        """The pixels of every encoder, one after another."""
        return self._transform

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [I, P] -> features [I, T, W].

        Raises:
            UserError: an encoder gives something else than its `info` promises.
        """
        features = []
        for index, (encoder, part) in enumerate(zip(self.encoders, torch.split(pixels, self._sizes, 1), strict=True)):
            info = cast(Encoder, encoder).info
            found: Tensor = encoder(part.reshape(len(part), *info.pixel_shape))
            expected = (len(part), info.tokens, info.width)
            if tuple(found.shape) != expected:
                raise UserError(
                    f"`forward` gives shape {tuple(found.shape)}, promised {expected}",
                    where=_place(index),
                    hint="mend `forward`, or what is promised (`info`)",
                )
            features.append(found)
        if self.join == "sequence":
            return torch.cat(features, 1)
        return torch.cat([resample(found, self.grid) for found in features], 2)


def resample(tokens: Tensor, grid: int) -> Tensor:
    """Bring a square grid of tokens to another size, by bilinear interpolation (antialiased, in float32).

    Args:
        tokens: [I, s * s, W], row by row; of the wanted size they stay as they are.
        grid: tokens per side.

    Returns:
        Tokens [I, grid * grid, W], row by row.
    """
    side = math.isqrt(tokens.shape[1])
    if side == grid:
        return tokens
    maps = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side).float()
    resized = functional.interpolate(maps, (grid, grid), mode="bilinear", align_corners=False, antialias=True)
    return resized.flatten(2).transpose(1, 2).to(tokens.dtype)


def _problems(encoders: Sequence[Encoder], join: str, grid: int | None) -> Iterator[Problem]:
    """Why these encoders can't be joined like this."""
    if len(encoders) < 2:
        yield Problem("model.encoder.encoders", f"{len(encoders)} encoder(s), nothing to join", "Name two or more.")
    if grid is not None and (grid < 1 or join == "sequence"):
        hint = "1 or more" if join == "channel" else "Leave it out, or write `join: channel`."
        yield Problem("model.encoder.grid", f"a grid of {grid} means nothing for `join: {join}`", hint)
    infos = [getattr(encoder, "info", None) for encoder in encoders]
    for index, info in enumerate(infos):
        if not isinstance(info, EncoderInfo):
            yield Problem(
                _place(index), f"`info` is {info!r}, not an EncoderInfo", "set `self.info = EncoderInfo(...)`"
            )
        elif join == "channel" and math.isqrt(info.tokens) ** 2 != info.tokens:
            hint = "Leave out its class and register tokens, or write `join: sequence`."
            yield Problem(_place(index), f"its {info.tokens} tokens are no square grid", hint)
    widths = [info.width for info in infos if isinstance(info, EncoderInfo)]
    if join == "sequence" and len(set(widths)) > 1:
        hint = "Take encoders of one width, or write `join: channel`."
        message = f"tokens of different widths ({', '.join(map(str, widths))}) can't follow each other in one sequence"
        yield Problem("model.encoder.join", message, hint)


def _place(index: int) -> str:
    return f"model.encoder.encoders.{index}"
