"""Yes or no, to probe for objects that are not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode

YES, NO = "yes", "no"


class POPE:
    """Accuracy of yes-or-no answers, with precision, recall and F1 of `yes` and how often it was said.

    Source: POPE (Li et al. 2023, 2305.10355), section 4.3.

    Args:
        mode: `strict` takes an answer that is yes or no, and nothing else; `paper` follows LLaVA's script, in which
            whatever does not say no in its first sentence has said yes.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("pope", mode)
        self.mode = mode
        if mode == "strict":
            self.definition = (
                "The answer, stripped and lower-cased, equals the reference `yes` or `no`; any other answer is wrong, "
                "and counts in neither precision nor recall of `yes`; the ratio is of answers that are `yes`."
            )
            self.follows = "lmms-eval (pope), but for its yes ratio, which counts the references"
        else:
            self.definition = (
                "Up to the first period, commas left out, the answer is `no` if one of its words is No, no or not, "
                "else `yes`; it equals the reference. An empty answer is wrong."
            )
            self.follows = "LLaVA (eval_pope.py)"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row 0 or 1; `details`: precision, recall, f1 and yes_ratio, 0 where undefined."""
        said = [self._said(row.text) for row in rows]
        truth = [row.answers[0].strip().lower() if row.answers else "" for row in rows]
        right = tuple(
            float(bool(row.text.strip()) and answer == reference)
            for row, answer, reference in zip(rows, said, truth, strict=True)
        )
        hits = sum(one == other == YES for one, other in zip(said, truth, strict=True))
        false = sum(one == YES and other == NO for one, other in zip(said, truth, strict=True))
        missed = sum(one == NO and other == YES for one, other in zip(said, truth, strict=True))
        precision, recall = _share(hits, hits + false), _share(hits, hits + missed)
        details = {
            "precision": precision,
            "recall": recall,
            "f1": _share(2 * precision * recall, precision + recall),
            "yes_ratio": _share(sum(answer == YES for answer in said), len(said)),
        }
        return Score(rows=right, corpus=_share(sum(right), len(right)), details=details)

    def _said(self, text: str) -> str:
        if self.mode == "strict":
            return text.strip().lower()
        words = text.split(".")[0].replace(",", "").split(" ")
        return NO if {"No", "not", "no"} & set(words) else YES


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
