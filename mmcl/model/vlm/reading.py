"""A ready VLM's own processor: from an image to pixels, and to the text that stands for it in a prompt."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmcl.errors import UserError
from mmcl.model.prompt import Picture
from mmcl.model.vlm.families import Family

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
GREY = (127, 127, 127)


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of an image of a certain size.

    Attributes:
        picture: how it stands in a prompt.
        shape: number of views, or rows and columns of the grid.
    """

    picture: Picture
    shape: tuple[int, ...]


class Reader:
    """Turns images into pixels as the VLM's processor does. Picklable.

    Args:
        processor: of the checkpoint.
        family: of the model.
        image_token: the text of one visual token.
    """

    def __init__(self, processor: Any, family: Family, image_token: str) -> None:
        self.processor = processor
        self.family = family
        self.image_token = image_token
        self.placeholder: str = processor.image_token

    def __call__(self, image: Image) -> Tensor:
        """An RGB image -> [views, ...] or [rows, columns, ...], float32."""
        return self.family.pixels(self._process(image)).float()

    def plan(self, size: Size) -> Plan:
        """What becomes of any image of (width, height): a grey one tells."""
        return _plan(self, size)

    def _process(self, image: Image) -> Any:
        return self.processor(images=[image], text=[self.placeholder], return_text_replacement_offsets=True)


@functools.lru_cache(maxsize=1 << 16)  # not kept in the reader, whose attributes tell what features depend on
def _plan(reader: Reader, size: Size) -> Plan:
    from PIL import Image

    processed = reader._process(Image.new("RGB", size, GREY))
    ((offsets,),) = processed["text_replacement_offsets"]
    text: str = offsets["replacement"]
    pattern = f"(?:{re.escape(reader.image_token)})+"
    runs = tuple(len(run) // len(reader.image_token) for run in re.findall(pattern, text))
    pixels = reader.family.pixels(processed)
    if not runs:
        raise UserError(
            f"the processor writes no `{reader.image_token}` for an image of {size[0]} x {size[1]} pixels",
            where="model.vlm",
            hint="model and processor must belong together",
        )
    shape = tuple(pixels.shape[: 2 if reader.family.grid else 1])
    return Plan(Picture(re.sub(pattern, lambda _: reader.image_token, text), runs), shape)
