"""Relaxed accuracy, for numbers read off charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, score_rows

TOLERANCE = 0.05


class ChartQA:
    """A number may be off by 5 per cent; any other answer equals the reference, apart from case.

    Source: ChartQA (Masry et al. 2022, 2203.10244), section 5.1, after PlotQA (Methani et al. 2020).

    Args:
        mode: `strict` compares with a reference of 0 as a number; `paper` follows the script that published tables
            come from, in which 0.0 is not 0.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("chartqa", mode)
        self.mode = mode
        zero = (
            "a reference of 0 wants a number equal to 0"
            if mode == "strict"
            else "a reference of 0 wants the same text, apart from case"
        )
        self.definition = (
            f"|answer - reference| / |reference| <= {TOLERANCE} where both are numbers ({zero}), else equal texts "
            "apart from case; `%` divides by 100, thousands separators are not read. Any reference will do. An empty "
            "answer is wrong."
        )
        self.follows = "lmms-eval (relaxed_correctness)" + (", but for references of 0" if mode == "strict" else "")

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row 0 or 1; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, lambda row: float(any(self._right(row.text, each) for each in row.answers)))

    def _right(self, answer: str, reference: str) -> bool:
        number, target = _number(answer), _number(reference)
        if number is not None and target:
            return abs(number - target) / abs(target) <= TOLERANCE
        if number is not None and target == 0 and self.mode == "strict":
            return number == 0
        return answer.lower() == reference.lower()


def _number(text: str) -> float | None:
    """What Python reads as a number: signs, exponents, digits of any script, `inf`; a per cent of it with `%`."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None
