"""The number in an answer, for counting and calculation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, score_rows

_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+\u2212]?\.\d+")
_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
} | {"none": 0, "no": 0}


class Numeric:
    """The last number of the answer is the reference's, within a tolerance.

    Args:
        mode: `strict` reads numbers out of texts; `paper` compares the texts, apart from case.
        tolerance: relative difference that is still right; 0 for equal.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict", tolerance: float = 0.0) -> None:
        check_mode("numeric", mode)
        self.mode, self.tolerance = mode, tolerance
        if mode == "strict":
            self.definition = (
                "The last number of the answer (digits, with thousands separators, or a word up to twenty) equals that "
                f"of a reference within {tolerance:g} of it; without a number in the reference, equal texts apart from "
                "case. An empty answer, or one without a number, is wrong."
            )
            self.follows = "mmcl's own definition"
        else:
            self.definition = "Equal texts apart from case and outer blanks. An empty answer is wrong."
            self.follows = "CoIN, UCIT"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row 0 or 1; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, lambda row: float(any(self._right(row.text, each) for each in row.answers)))

    def _right(self, answer: str, reference: str) -> bool:
        same = answer.strip().casefold() == reference.strip().casefold()
        if self.mode == "paper":
            return same
        target = _value(reference)
        if target is None:
            return same
        number = _value(answer)
        return number is not None and math.isclose(number, target, rel_tol=self.tolerance, abs_tol=1e-9)


def _value(text: str) -> float | None:
    """The last number in a text; the last word for one where it has no digits."""
    found = _NUMBER.findall(text)
    if found:
        return float(found[-1].replace(",", "").replace("\u2212", "-"))
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word in _WORDS]
    return float(_WORDS[words[-1]]) if words else None
