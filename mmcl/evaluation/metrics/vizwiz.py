"""Agreement with the annotators of VizWiz."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, score_rows, vqa_normalise

ENOUGH = 3
"""So many other annotators with the same answer make it right."""


class VizWiz:
    """Agreement with human annotators, always after normalisation.

    Source: VizWiz (Gurari et al. 2018, 1802.08218), section 5, after VQA.

    Args:
        mode: `strict` follows lmms-eval, `paper` CoIN, which compares with one answer.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("vizwiz", mode)
        self.mode = mode
        if mode == "strict":
            self.definition = (
                f"Mean over annotators of min(1, matches among the others / {ENOUGH}), both sides normalised as in the "
                "VQA script; a single annotator: equal or not. An empty answer is wrong."
            )
            self.follows = "lmms-eval (vizwiz_vqa), but for a single annotator, with whom it gives 0"
        else:
            self.definition = (
                "The upper-cased answer equals the upper-cased first reference, nothing stripped. An empty answer is "
                "wrong."
            )
            self.follows = "CoIN (eval_vizwiz.py)"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, _agreement if self.mode == "strict" else _one)


def _agreement(row: Prediction) -> float:
    answer = _normal(row.text)
    equal = [_normal(reference) == answer for reference in row.answers]
    if len(equal) < 2:
        return float(any(equal))
    matches = sum(equal)
    return sum(min(1.0, (matches - hit) / ENOUGH) for hit in equal) / len(equal)


def _normal(text: str) -> str:
    return vqa_normalise(text.replace("\n", " ").replace("\t", " ").strip())


def _one(row: Prediction) -> float:
    return float(bool(row.answers) and row.text.upper() == row.answers[0].upper())
