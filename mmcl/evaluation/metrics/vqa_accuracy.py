"""VQA accuracy: agreement with human annotators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, score_rows, vqa_normalise

_ANNOTATORS = 10


class VQAAccuracy:
    """Agreement with ten human annotators, as VQAv2 is scored; one answer: exact match after normalisation.

    Source: Antol et al. 2015, section 4 ("evaluation"); Goyal et al. 2017 for VQAv2. Paper mode is what the
    continual-learning papers on VQAv2 and VizWiz report (CoIN, Chen et al. 2024), and is not comparable with it.

    Args:
        mode: `strict` follows the official VQA script, `paper` follows CoIN.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("vqa_accuracy", mode)
        self.mode = mode
        if mode == "strict":
            self.definition = (
                "Mean over annotators of min(1, matches among the other annotators / 3), both sides normalised as in "
                "the VQA script (punctuation, articles, number words, contractions) unless all ten raw answers are the "
                "same, then compared without case. With n < 10 references both sides are always normalised and 3 "
                "becomes min(3, n - 1); one reference: equal or not. An empty answer is wrong."
            )
            self.follows = "official VQA evaluation script (GT-Vision-Lab/VQA, vqaEval.py)"
        else:
            self.definition = (
                "The upper-cased answer equals the upper-cased reference, nothing stripped; of several references the "
                "most frequent one counts (the first of those on a tie). An empty answer is wrong."
            )
            self.follows = "CoIN (eval_vqav2.py, eval_vizwiz.py)"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, _official if self.mode == "strict" else _one_answer)


def _official(row: Prediction) -> float:
    answer, agreeing = _plain(row.text), Counter(row.answers)
    normalise = vqa_normalise if len(row.answers) < _ANNOTATORS or len(agreeing) > 1 else _as_it_is
    answer = normalise(answer).lower()
    matches = sum(count for text, count in agreeing.items() if normalise(_plain(text)).lower() == answer)
    return leave_one_out(matches, len(row.answers))


def leave_one_out(matches: int, annotators: int) -> float:
    """Mean over annotators, of whom `matches` agree, of min(1, agreement of the others / 3)."""
    if annotators <= 1:
        return float(matches)
    # With fewer than four annotators the others can't reach three, and even unanimity would score below 1.
    enough = min(3, annotators - 1)
    of_those_who_agree = min(1.0, (matches - 1) / enough)
    of_the_rest = min(1.0, matches / enough)
    return (matches * of_those_who_agree + (annotators - matches) * of_the_rest) / annotators


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _as_it_is(text: str) -> str:
    return text


def _one_answer(row: Prediction) -> float:
    if not row.answers:
        return 0.0
    reference = max(row.answers, key=row.answers.count)
    return float(row.text.upper() == reference.upper())
