"""Agreement with the annotators of TextVQA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, score_rows, vqa_normalise
from .vqa_accuracy import leave_one_out


class TextVQA:
    """Agreement with ten human annotators, after EvalAI's normalisation of both sides.

    Source: TextVQA (Singh et al. 2019, 1904.08920), section 3, after VQA.

    Args:
        mode: `strict` and `paper` agree here: papers use the same script.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("textvqa", mode)
        self.mode = mode
        self.definition = (
            "Mean over annotators of min(1, matches among the others / 3), both sides lower-cased, without commas and "
            "question marks, `'s` apart, then normalised as in the VQA script. With n < 10 references 3 becomes "
            "min(3, n - 1); one reference: equal or not. An empty answer is wrong."
        )
        self.follows = "LLaVA (m4c_evaluator.py, TextVQAAccuracyEvaluator) and lmms-eval, which agree"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, _agreement)


def _agreement(row: Prediction) -> float:
    answer = evalai_normalise(row.text)
    matches = sum(evalai_normalise(reference) == answer for reference in row.answers)
    return leave_one_out(matches, len(row.answers))


def evalai_normalise(text: str) -> str:
    """The text as EvalAI's server compares it."""
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa_normalise(words.replace("\n", " ").replace("\t", " ").strip())
