"""Exact match as OCR-VQA is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, score_rows

_REFUSAL = "Unanswerable"


class OCRVQA:
    """The answer equals the reference, apart from case.

    Source: OCR-VQA (Mishra et al. 2019), section 5: accuracy.

    Args:
        mode: `strict` compares lower-cased texts; `paper` follows CoIN, where an answer with the word Unanswerable in
            it is wrong even if that is the reference.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("ocrvqa", mode)
        self.mode = mode
        rule = "The lower-cased answer equals a lower-cased reference, nothing stripped. An empty answer is wrong"
        if mode == "strict":
            self.definition = f"{rule}."
            self.follows = "CoIN (eval_ocrvqa.py), but for refusals"
        else:
            self.definition = f"{rule}, and so is any with `{_REFUSAL}` in it."
            self.follows = "CoIN (eval_ocrvqa.py)"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row 0 or 1; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, self._right)

    def _right(self, row: Prediction) -> float:
        if self.mode == "paper" and _REFUSAL in row.text:
            return 0.0
        return float(any(row.text.lower() == reference.lower() for reference in row.answers))
