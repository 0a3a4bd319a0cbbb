"""Exact match as GQA is scored."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, score_rows

_NO_MARKS = str.maketrans("", "", string.punctuation)


class GQA:
    """The answer equals the reference, apart from case and punctuation.

    Source: GQA (Hudson and Manning 2019, 1902.09506), section 4: accuracy of the short answer.

    Args:
        mode: `strict` follows lmms-eval, `paper` LLaVA's conversion with GQA's own script, as CoIN uses them.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("gqa", mode)
        self.mode = mode
        if mode == "strict":
            self.definition = (
                "Lower-cased and without ASCII punctuation on both sides, the answer equals any reference; white space "
                "counts. An empty answer is wrong."
            )
            self.follows = "lmms-eval (exact_match of gqa)"
        else:
            self.definition = (
                "Lower-cased and without trailing periods, the answer equals the first reference as it is. An empty "
                "answer is wrong."
            )
            self.follows = "LLaVA (convert_gqa_for_eval.py) with GQA's eval.py, as in CoIN"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row 0 or 1; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, _strict if self.mode == "strict" else _paper)


def _strict(row: Prediction) -> float:
    answer = _plain(row.text)
    return float(bool(answer.strip()) and any(answer == _plain(each) for each in row.answers))


def _plain(text: str) -> str:
    # The script keeps texts in arrays of NumPy, which lose NUL characters at their end.
    return text.lower().translate(_NO_MARKS).rstrip("\0")


def _paper(row: Prediction) -> float:
    return float(bool(row.answers) and row.text.rstrip(".").lower() == row.answers[0])
