"""Lenient match: the reference is somewhere in the answer."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, fold, score_rows


class Contains:
    """One of the references stands in the answer as whole words, so that a right answer in a wrong format counts.

    The gap to `exact` is the part of an error that is format, not content: an approximation without a judge, since
    "not red" contains "red".

    Args:
        mode: `strict` as above; `paper` follows CoIN's ImageNet script, a substring in either direction.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("contains", mode)
        self.mode = mode
        if mode == "strict":
            self.definition = (
                "Any of the references occurs in the answer as whole words after Unicode composition (NFC), case "
                "folding, collapsing white space and dropping trailing periods; in scripts without spaces, anywhere. "
                "A number inside a longer number does not count. An empty answer is wrong."
            )
            self.follows = "mmcl's own definition"
        else:
            self.definition = (
                "The first reference is a substring of the answer or the answer of it, case-sensitive. An empty "
                "answer is wrong (the script that this follows counts it as right)."
            )
            self.follows = "CoIN (eval_ImagetNet.py), except for empty answers"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row 0 or 1; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, _strict if self.mode == "strict" else _paper)


def _strict(row: Prediction) -> float:
    answer = fold(row.text)
    return float(any(_holds(answer, fold(reference)) for reference in row.answers))


def _paper(row: Prediction) -> float:
    if not row.answers:
        return 0.0
    reference = row.answers[0]
    return float(bool(reference) and (reference in row.text or row.text in reference))


def _holds(text: str, words: str) -> bool:
    """Whether `words` occurs in `text` without cutting a word or a number; never for empty `words`."""
    start = text.find(words) if words else -1
    while start >= 0:
        end = start + len(words)
        if not _joined(text, start) and not _joined(text, end):
            return True
        start = text.find(words, start + 1)
    return False


def _joined(text: str, at: int) -> bool:
    """Whether the characters on both sides of position `at` belong to one word or number."""
    if not 0 < at < len(text):
        return False
    left, right = text[at - 1], text[at]
    if _in_word(left) and _in_word(right):
        return not (_unspaced(left) or _unspaced(right))
    # A decimal point or thousands comma between digits: "3" is not in "3.5", and "5" is not in "3.5" either.
    if left.isdigit() and right in ".,":
        return text[at + 1 : at + 2].isdigit()
    if left in ".," and right.isdigit():
        return at >= 2 and text[at - 2].isdigit()
    return False


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")


# First and last code point of scripts that are written without spaces between words: Thai and Lao, Myanmar, Khmer,
# Japanese kana, Han with its compatibility forms and supplementary planes.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def _unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _UNSPACED)
