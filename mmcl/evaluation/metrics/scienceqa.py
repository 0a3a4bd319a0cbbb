"""The letter of a choice, as ScienceQA is scored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, score_rows

_LETTERS = "ABCDE"
_SENTENCE = re.compile(r"The answer is ([A-Z]).")  # any character may follow: so does the script


class ScienceQA:
    """The answer's letter is the reference's.

    Source: ScienceQA (Lu et al. 2022, 2209.09513), section 5: accuracy of the chosen option.

    Args:
        mode: `strict` follows lmms-eval, `paper` LLaVA's script, as CoIN uses it.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("scienceqa", mode)
        self.mode = mode
        if mode == "strict":
            self.definition = (
                "The stripped answer is the reference's letter in any case, or begins with it as a capital and a "
                "period. The text of a choice is wrong, and so is an empty answer."
            )
            self.follows = "lmms-eval (sqa_process_results)"
        else:
            self.definition = (
                "The answer is one of A to E, or begins with it, a period and a space, or says `The answer is X.` "
                "once; nothing stripped. That letter equals the reference. An empty answer is wrong."
            )
            self.follows = "LLaVA (eval_science_qa.py), as in CoIN"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row 0 or 1; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, _strict if self.mode == "strict" else _paper)


def _strict(row: Prediction) -> float:
    answer = row.text.strip()
    if any(answer.lower() == reference.strip().lower() for reference in row.answers):
        return 1.0
    lettered = len(answer) > 1 and answer[0].isupper() and answer[1] == "."
    return float(lettered and any(answer[0] == reference.strip() for reference in row.answers))


def _paper(row: Prediction) -> float:
    said = row.text
    if said not in tuple(_LETTERS):
        found = _SENTENCE.findall(said)
        if len(said) >= 3 and said[0] in _LETTERS and said[1:3] == ". ":
            said = said[0]
        else:
            said = found[0] if len(found) == 1 else ""
    return float(said in row.answers)
