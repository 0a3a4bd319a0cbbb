"""The letter of a choice, however it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode, fold, score_rows

_LINE = re.compile(r"^\s*\(?([A-Z])\)?[.:)]\s*(\S.*?)\s*$", re.MULTILINE)
_ALONE = re.compile(r"^\s*[\[(]?([A-Za-z])[\])]?\s*(?:[.:),]|$)")
_SAID = re.compile(r"\b(?:answer|option|choice)\b(?:\s+is|\s*:)?\s*[\[(]?([A-Z])\b", re.IGNORECASE)


class MultipleChoice:
    """The choice that the answer names, by its letter or by its text, is the reference's.

    Choices are read from the question (`A. red`, one per line), or from the row's metadata (`choices`).

    Args:
        mode: `strict` as above; `paper` follows UCIT and CoIN, which compare upper-cased texts.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("multiple_choice", mode)
        self.mode = mode
        if mode == "strict":
            self.definition = (
                "The letter that the answer begins with or names (`B`, `(b)`, `B. red`, `The answer is B`), or that of "
                "the choice whose text it is, equals the reference's, which may be a letter or a choice's text. An "
                "empty answer is wrong."
            )
            self.follows = "mmcl's own definition"
        else:
            self.definition = (
                "The upper-cased answer equals the upper-cased first reference, nothing stripped. An empty answer is "
                "wrong."
            )
            self.follows = "UCIT, CoIN"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row 0 or 1; an empty answer is wrong, and so is a row without references."""
        return score_rows(rows, _strict if self.mode == "strict" else _paper)


def _strict(row: Prediction) -> float:
    choices = _choices(row)
    said = _letter(row.text, choices)
    return float(bool(said) and any(said == _letter(reference, choices) for reference in row.answers))


def _paper(row: Prediction) -> float:
    return float(bool(row.answers) and row.text.upper() == row.answers[0].upper())


def _choices(row: Prediction) -> Mapping[str, str]:
    """The folded text of each choice, to its letter."""
    given = row.metadata.get("choices")
    if isinstance(given, list | tuple):
        return {fold(str(text)): chr(ord("A") + place) for place, text in enumerate(given)}
    return {fold(text): letter for letter, text in _LINE.findall(row.prompt)}


def _letter(text: str, choices: Mapping[str, str]) -> str:
    """The letter that a text means; for a text that means none, the text itself, so that it can still be equal."""
    whole = fold(text)
    if whole in choices:
        return choices[whole]
    known = set(choices.values())
    for pattern in (_ALONE, _SAID):
        found = pattern.search(text)
        if found and (not known or found[1].upper() in known):
            return found[1].upper()
    return whole
