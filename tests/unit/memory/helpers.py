"""Small real samples for tests of the replay memory."""

from __future__ import annotations

import io
import random

from PIL import Image

from mmcl.data.images import BytesImage
from mmcl.data.types import Sample, Turn


def png(seed: int, size: int = 8) -> bytes:
    """A PNG of random pixels."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (size, size), random.Random(seed).randbytes(3 * size * size)).save(buffer, "PNG")
    return buffer.getvalue()


def picture(seed: int, size: int = 8) -> BytesImage:
    return BytesImage(png(seed, size), f"{seed}.png")


def row(
    task: str, index: int, *, image: BytesImage | None = None, group: str = "", question: str = "what is it?"
) -> Sample:
    text = f"<image>\n{question}" if image is not None and question else "<image>" if image is not None else question
    return Sample(
        id=str(index),
        task=task,
        turns=(Turn("user", text), Turn("assistant", f"answer {index}")),
        images=(image,) if image is not None else (),
        group=group,
    )


def rows(task: str, count: int, *, images: bool = True, group: str = "", first: int = 0) -> list[Sample]:
    """`count` rows, each with an image of its own, or text only."""
    return [
        row(task, index, image=picture(1000 * (len(task) + 1) + index) if images else None, group=group)
        for index in range(first, first + count)
    ]
