"""Grounding: does the answer's box lie where the reference's does?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, score_rows

Box = tuple[float, float, float, float]
ENOUGH = 0.5
_NUMBER = r"-?\d+(?:\.\d+)?"
_BOX = re.compile(rf"\[\s*({_NUMBER}),\s*({_NUMBER}),\s*({_NUMBER}),\s*({_NUMBER})\s*\]")


class RefCOCO:
    """The first box of the answer overlaps the reference by half of their union.

    Boxes are `[x1, y1, x2, y2]` in the same unit on both sides, as the task's prompts ask for them.

    Source: RefCOCO (Yu et al. 2016, 1608.00272), section 5: a box counts from an intersection over union of 0.5.

    Args:
        mode: `strict` counts from 0.5, `paper` above it, as CoIN does.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("refcoco", mode)
        self.mode = mode
        sign = ">=" if mode == "strict" else ">"
        self.definition = (
            f"Intersection over union of the answer's first `[x1, y1, x2, y2]` and the reference {sign} {ENOUGH}; an "
            "answer without a box is wrong, and so is a box without area."
        )
        self.follows = (
            "lmms-eval (refcoco, ACC@0.5)"
            if mode == "strict"
            else "CoIN (eval_grounding.py), but for its reading of numbers, which loses their first and last digit"
        )

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row 0 or 1; an empty answer is wrong, and so is a row without a box as its reference."""
        return score_rows(rows, self._right)

    def _right(self, row: Prediction) -> float:
        answer = first_box(row.text)
        overlaps = [
            overlap(answer, box) for each in row.answers if answer is not None and (box := first_box(each)) is not None
        ]
        best = max(overlaps, default=0.0)
        return float(best >= ENOUGH if self.mode == "strict" else best > ENOUGH)


def first_box(text: str) -> Box | None:
    """The first four numbers in square brackets."""
    found = _BOX.search(text)
    if found is None:
        return None
    x1, y1, x2, y2 = map(float, found.groups())
    return x1, y1, x2, y2


def overlap(one: Box, other: Box) -> float:
    """Intersection over union; 0 where a box is inverted or neither has an area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    inside = width * height
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - inside
    return inside / union if union > 0 else 0.0
