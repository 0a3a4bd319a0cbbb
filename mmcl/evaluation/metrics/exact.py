"""Exact match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, fold, score_rows


class Exact:
    """The answer equals one of the references, apart from case, white space and a trailing period.

    Args:
        mode: `strict` accepts any reference; `paper` follows CoIN and UCIT, which compare upper-cased raw text with
            one reference.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("exact", mode)
        self.mode = mode
        if mode == "strict":
            self.definition = (
                "The answer equals any of the references after Unicode composition (NFC), case folding, collapsing "
                "white space and dropping trailing periods on both sides; other punctuation and articles count. "
                "An empty answer is wrong."
            )
            self.follows = "mmcl's own definition"
        else:
            self.definition = (
                "The upper-cased answer equals the upper-cased first reference, nothing stripped. "
                "An empty answer is wrong."
            )
            self.follows = "CoIN (eval_vqav2.py, eval_vizwiz.py) and UCIT"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row 0 or 1; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, _strict if self.mode == "strict" else _paper)


def _strict(row: Prediction) -> float:
    answer = fold(row.text)
    return float(any(answer == fold(reference) for reference in row.answers))


def _paper(row: Prediction) -> float:
    return float(bool(row.answers) and row.text.upper() == row.answers[0].upper())
