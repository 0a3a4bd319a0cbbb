"""Captions against several references: CIDEr, BLEU and ROUGE-L as the scripts of COCO's caption task compute them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from mmcl.protocols import Prediction, Score

from .normalise import check_mode
from .ptb import tokens

Grams = Counter[tuple[str, ...]]

SIGMA, LONGEST = 6.0, 4
TINY, SMALL = 1e-15, 1e-9
BETA = 1.2

_PLAIN = re.compile(r"[a-z0-9]+")


class CIDEr:
    """Consensus of a caption with its references, weighted by how telling their word sequences are.

    Source: Vedantam et al. 2015, 1411.5726, section 5, in the form that is published under the name: counts clipped, a
    Gaussian penalty (sigma 6) on the difference in length, idf from the references of the set at hand.

    Args:
        mode: `strict` and `paper` are the same.
    """

    definition = (
        "CIDEr-D / 10: mean over 1- to 4-grams of the clipped tf-idf cosine with each reference, times a Gaussian of "
        "the difference in length; 1 here is the 10 of papers (1000 where they print percent). Document frequencies "
        "come from the set's own references, so a set of one image scores 0. An empty answer scores 0."
    )
    follows = "pycocoevalcap 1.2 (Cider), with its PTB tokens"

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("cider", mode)
        self.mode = mode

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row in its set; an empty answer is wrong."""
        references = [[_grams(tokens(text)) for text in row.answers] for row in rows]
        frequency: Counter[tuple[str, ...]] = Counter(
            gram for each in references for gram in {gram for counts in each for gram in counts}
        )
        images = math.log(len(rows)) if rows else 0.0

        def vector(counts: Grams) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
            parts: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
            for gram, count in counts.items():
                parts[len(gram) - 1][gram] = count * (images - math.log(max(1, frequency[gram])))
            norms = [math.sqrt(sum(weight * weight for weight in part.values())) for part in parts]
            return parts, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

        scores = []
        for row, others in zip(rows, references, strict=True):
            mine, lengths, size = vector(_grams(tokens(row.text)))
            total = 0.0
            for theirs, norms, length in map(vector, others):
                shape = math.exp(-((size - length) ** 2) / (2 * SIGMA**2))
                for part, norm, other, other_norm in zip(mine, lengths, theirs, norms, strict=True):
                    if norm and other_norm:
                        common = sum(
                            min(weight, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, weight in part.items()
                        )
                        total += shape * common / (norm * other_norm)
            scores.append(min(1.0, total / (LONGEST * len(others))) if others and row.text.strip() else 0.0)
        mean = math.fsum(scores) / len(scores) if scores else 0.0
        return Score(tuple(scores), mean, {"CIDEr": 10 * mean})


class BLEU:
    """Word sequences of a caption that its references have, too, in the whole set.

    Source: Papineni et al. 2002 (ACL), sections 2.1 to 2.3; BLEU-4 of the set is not the mean of its rows.

    Args:
        mode: `strict` and `paper` are the same.
    """

    definition = (
        "Corpus BLEU-4: geometric mean of the clipped 1- to 4-gram precisions over the whole set, with the brevity "
        "penalty against the closest reference; rows are the same of one answer alone. An empty answer scores 0."
    )
    follows = "pycocoevalcap 1.2 (Bleu, option closest), with its PTB tokens"

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("bleu", mode)
        self.mode = mode

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row, and the set; an empty answer is wrong."""
        found = [self._counts(row) for row in rows]
        asked = [bool(row.text.strip() and row.answers) for row in rows]
        scores = [_bleu([each])[LONGEST - 1] if fit else 0.0 for fit, each in zip(asked, found, strict=True)]
        whole = _bleu(found) if found else [0.0] * LONGEST
        details = {f"BLEU-{n + 1}": value for n, value in enumerate(whole)}
        return Score(tuple(min(1.0, score) for score in scores), min(1.0, whole[-1]), details)

    @staticmethod
    def _counts(row: Prediction) -> tuple[int, int, list[int]]:
        """Length, the closest reference's length, and how many n-grams of each n the references have."""
        words = tokens(row.text)
        mine = _grams(words)
        most: Grams = Counter()
        lengths = []
        for text in row.answers:
            theirs = tokens(text)
            lengths.append(len(theirs))
            most |= _grams(theirs)
        closest = min(lengths, key=lambda length: (abs(length - len(words)), length), default=0)
        right = [0] * LONGEST
        for gram, count in mine.items():
            right[len(gram) - 1] += min(count, most[gram])
        return len(words), closest, right


class RougeL:
    """The longest common sequence of words with a reference.

    Source: Lin 2004 (ACL workshop), section 3.

    Args:
        mode: `strict` as COCO's scripts have it, `paper` as the package rouge-score, which knows no letters but a to z.
    """

    def __init__(self, *, mode: Literal["strict", "paper"] = "strict") -> None:
        check_mode("rouge_l", mode)
        self.mode = mode
        if mode == "strict":
            self.definition = (
                "F of precision and recall of the longest common subsequence (beta 1.2), each the best over the "
                "references. An empty answer scores 0."
            )
            self.follows = "pycocoevalcap 1.2 (Rouge), with its PTB tokens"
        else:
            self.definition = (
                "F1 of the longest common subsequence of lower-case runs of a-z and 0-9, of the best reference; other "
                "letters are not seen. An empty answer scores 0."
            )
            self.follows = "rouge-score 0.1.2 (rougeL, no stemmer)"

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row; an empty answer is wrong."""
        score = self._strict if self.mode == "strict" else self._paper
        scores = tuple(score(row) if row.text.strip() and row.answers else 0.0 for row in rows)
        return Score(scores, math.fsum(scores) / len(scores) if scores else 0.0)

    @staticmethod
    def _strict(row: Prediction) -> float:
        mine = tokens(row.text) or ("",)
        precision, recall = 0.0, 0.0
        for text in row.answers:
            theirs = tokens(text) or ("",)
            common = _common(mine, theirs)
            precision, recall = max(precision, common / len(mine)), max(recall, common / len(theirs))
        if not precision or not recall:
            return 0.0
        return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)

    @staticmethod
    def _paper(row: Prediction) -> float:
        mine, best = _PLAIN.findall(row.text.lower()), 0.0
        for text in row.answers:
            theirs = _PLAIN.findall(text.lower())
            common = _common(mine, theirs)
            if common:
                precision, recall = common / len(mine), common / len(theirs)
                best = max(best, 2 * precision * recall / (precision + recall))
        return best


def _grams(words: Sequence[str]) -> Grams:
    return Counter(
        tuple(words[start : start + n]) for n in range(1, LONGEST + 1) for start in range(len(words) - n + 1)
    )


def _bleu(rows: Sequence[tuple[int, int, list[int]]]) -> list[float]:
    """BLEU-1 to BLEU-4 of these rows together."""
    length, reference = sum(row[0] for row in rows), sum(row[1] for row in rows)
    ratio = (length + TINY) / (reference + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    values, product = [], 1.0
    for n in range(LONGEST):
        right = sum(row[2][n] for row in rows)
        possible = sum(max(0, row[0] - n) for row in rows)
        product *= (right + TINY) / (possible + SMALL)
        values.append(product ** (1 / (n + 1)) * brevity)
    return values


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, theirs in enumerate(other, start=1):
            before, row[place] = row[place], before + 1 if word == theirs else max(row[place], row[place - 1])
    return row[-1]
