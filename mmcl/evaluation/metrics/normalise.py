"""What the metrics share: how answers are normalised before they are compared, and how rows become a score."""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from mmcl.errors import UserError
from mmcl.protocols import Prediction, Score

MODES = ("strict", "paper")


def check_mode(metric: str, mode: str) -> None:
    """Raise UserError unless `mode` is one that metrics have."""
    if mode not in MODES:
        raise UserError(f"{metric} has no mode {mode!r}", where="mode", hint=f"choose one of: {', '.join(MODES)}")


def score_rows(rows: Sequence[Prediction], rule: Callable[[Prediction], float]) -> Score:
    """Apply `rule` to each row; an answer without a visible character scores 0 whatever its references are.

    Returns:
        The score of each row in the given order, and their mean. `math.fsum` rounds once, so the order of the rows
        does not change the mean in the last bit.
    """
    scores = tuple(0.0 if not row.text.strip() else rule(row) for row in rows)
    return Score(rows=scores, corpus=math.fsum(scores) / len(scores) if scores else 0.0)


def fold(text: str) -> str:
    """A form in which two spellings of one answer are equal in any script.

    Case, the Unicode composition of accents, the amount of white space and trailing periods do not count; everything
    else does. An answer of nothing but periods stays as it is.
    """
    composed = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    spaced = " ".join(composed.split())
    return spaced.rstrip(".").rstrip() or spaced


# ------------------------------------------------------------------------------------- the official VQA normalisation
# Behaviour of the VQA evaluation script (Antol et al. 2015, GT-Vision-Lab/VQA), including three oddities that are part
# of every published number: periods go unless a digit follows, only the first 32 of them, and contractions that begin
# with a capital are never restored because the text is lower-cased first.

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ANY_MARK = re.compile(f"[{re.escape(_MARKS)}]")
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}

# Endings with the words that the script knows them on. Its gaps are deliberate or accidental ("its" and "wed" are
# words, "Im" has a capital) and have to be kept either way.
_ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who you y'all",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'ve": "could might must not should they we what where who would you",
    "": "ma'am o'clock 'twas y'all 'ow's'at",
}


def _contractions() -> Iterator[tuple[str, str]]:
    """Pairs of a contraction that lacks one of its apostrophes, and the contraction."""
    for ending, words in _ENDINGS.items():
        for word in words.split():
            full = word + ending
            for at, character in enumerate(full):
                if character == "'":
                    yield full[:at] + full[at + 1 :], full
    yield "somebody'd", "somebodyd"  # the script has this one the wrong way round


_CONTRACTIONS = dict(_contractions())


def vqa_punctuation(text: str) -> str:
    """Remove punctuation as the VQA script does.

    A mark that touches a space somewhere in the text is deleted everywhere, as is every mark when the text holds a
    number with a thousands comma; otherwise a mark becomes a space.
    """
    result = text
    delete_all = _THOUSANDS.search(text) is not None
    for mark in _ANY_MARK.findall(text):
        delete = delete_all or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if delete else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def vqa_words(text: str) -> str:
    """Lower-case, write number words up to ten as digits, drop articles, restore apostrophes, join with one space."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@functools.lru_cache(maxsize=1 << 16)  # ten annotators, few words: most answers were seen before
def vqa_normalise(text: str) -> str:
    """The VQA script's whole normalisation of one answer."""
    return vqa_words(vqa_punctuation(text))
