"""Where an image's tokens stand in a row, and what they see."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmcl.data.types import ImageSource
from mmcl.model.packing import Look, Position
from mmcl.model.prompt import Picture


class ImageLayout:
    """How images become tokens. This one: an image's views one after another, in one run; ready VLMs have their own.

    Attributes:
        look: which positions also see what follows them.
        deep_positions: whether positions are (time, height, width).
    """

    look: Look = "causal"
    deep_positions: bool = False

    def picture(self, image: ImageSource) -> Picture | None:
        """How an image stands in a prompt; None: as one run of its visual tokens."""
        return None

    def positions(self, ids: Sequence[int], images: Sequence[ImageSource]) -> tuple[Position, ...]:
        """Positions of expanded token ids (`-1 - k` is a visual token of image k); empty: 0, 1, 2 ..."""
        return ()

    def arrange(self, tokens: Tensor, image: ImageSource) -> Tensor:
        """Projected views [V, T', D] of an image -> its visual tokens [n, D], in the order of its runs."""
        return tokens.flatten(0, 1)
