"""Average normalised Levenshtein similarity, for text read off documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, score_rows

THRESHOLD = 0.5


class ANLS:
    """How near the answer is to the nearest reference, in edits; less than half of it counts as nothing.

    Source: Biten et al. 2019 (1905.13648), section 4; DocVQA (Mathew et al. 2021) for documents.

    Args:
        mode: `strict` compares stripped, lower-cased texts; `paper` follows the script that most tables come from,
            which also collapses white space but divides by the length of the texts as they came.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("anls", mode)
        self.mode = mode
        if mode == "strict":
            self.definition = (
                "max over references of s = 1 - edits / length of the longer text, both stripped and lower-cased; "
                "s < 0.5 counts as 0. An empty answer is wrong."
            )
            self.follows = "STVQAANLSEvaluator (LLaVA, m4c_evaluator.py)"
        else:
            self.definition = (
                "max over references of s = 1 - edits / length of the longer text; edits between stripped, lower-cased "
                "texts with single spaces, lengths of the raw texts; s < 0.5 counts as 0. An empty answer is wrong."
            )
            self.follows = "lmms-eval (anls), after the DocVQA script"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, _strict if self.mode == "strict" else _paper)


def _strict(row: Prediction) -> float:
    answer = row.text.strip().lower()
    references = {reference.strip().lower() for reference in row.answers}
    return max((_kept(answer, ref, max(len(answer), len(ref))) for ref in references), default=0.0)


def _paper(row: Prediction) -> float:
    answer = " ".join(row.text.strip().lower().split())
    return max(
        (
            _kept(answer, " ".join(ref.strip().lower().split()), max(len(row.text.upper()), len(ref.upper())))
            for ref in row.answers
        ),
        default=0.0,
    )


def _kept(answer: str, reference: str, length: int) -> float:
    if abs(len(answer) - len(reference)) > length * (1 - THRESHOLD):  # no fewer edits than that
        return 0.0
    edits = 0 if answer == reference else levenshtein(answer, reference)
    similarity = 1 - edits / length if length else 0.0
    return similarity if similarity >= THRESHOLD else 0.0


def levenshtein(one: str, other: str) -> int:
    """Fewest insertions, deletions and substitutions of characters from one text to the other.

    A column of the usual table as the bits of two numbers: where it rises and where it falls (Myers 1999; Hyyro 2003),
    so that texts of 10,000 characters take a blink.
    """
    if not one:
        return len(other)
    places: dict[str, int] = {}
    for index, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << index
    full, last = (1 << len(one)) - 1, 1 << len(one) - 1
    rises, falls, distance = full, 0, len(one)
    for character in other:
        equal = places.get(character, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        up = (falls | ~(diagonal | rises)) & full
        down = rises & diagonal
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & full, down << 1 & full
        rises, falls = (down | ~(diagonal | up)) & full, up & diagonal
    return distance
