"""Why a task was forgotten: what returns when one thing at a time is put back as it was.

A cell of the matrix lost score between the stage at which its task was learned and a later one. The questions that were
answered better then are asked again, each time with one repair, and what a repair returns is that part of the loss. A
question that several repairs return is counted for the first of them, in the order of `PARTS`: what costs a user least
to mend comes first. Where a question took another route than its own, the repairs after that of the route are made over
its own. The parts and the rest add up to the loss of these questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

PARTS: Mapping[str, str] = {
    "routing": "returns over the route of the question's own task (the oracle's) instead of the route taken",
    "format": "returns when the answer is read leniently (a reference stands in it as whole words), or when the model "
    "only has to rank the task's answers by likelihood, less what ranking returns with the image of a question that "
    "has another answer (which is guessing)",
    "vision": "returns when encoder, projector and projector experts are those of the stage that learned the task",
    "prior": "returns when the language model's adapters and weights are those of that stage (or these and the vision "
    "side), and the answer given did not come from the image: it stays the same with a blank and with a foreign "
    "image, or it belongs to another task and not to this one",
    "language": "returns when the language model's adapters and weights alone are those of that stage, the answer "
    "given being one of the task's that changes with the image",
    "together": "returns only when both the vision and the language side are those of that stage",
}
"""The parts of a loss in the order in which they are counted, with what is measured."""

REST = "returns with none of these: what a method keeps beside parameters and routes has changed"


@dataclass(frozen=True, slots=True)
class Lost:
    """A question that was answered better when its task was learned. Scores are in [0, 1].

    Attributes:
        before: score at the stage that learned the task.
        after: score at the later stage.
        oracle: over the task's own route; as `after` where that is the route taken.
        lenient: of the answer read leniently.
        ranked: of the most likely of the task's answers; None where it has no closed set of them.
        guessed: the same with the image of a question that has another answer.
        vision: with the vision side of the stage that learned the task.
        language: with its language side.
        both: with both.
        blind: whether the answer stays the same with a blank and with a foreign image.
        foreign: whether the answer is one of another task, and none of its own.
    """

    before: float
    after: float
    oracle: float
    lenient: float
    ranked: float | None
    guessed: float | None
    vision: float
    language: float
    both: float
    blind: bool
    foreign: bool


@dataclass(frozen=True, slots=True)
class Split:
    """A loss in parts.

    Attributes:
        loss: sum over the lost questions of what each lost.
        parts: of the loss; they and `rest` add up to it.
        rest: see `REST`.
        largest: of each question, the part that most of its loss was counted for; `rest` where none was.
    """

    loss: float
    parts: Mapping[str, float]
    rest: float
    largest: Sequence[str] = ()

    def share(self, part: str) -> float:
        """A part's share of the loss, in [0, 1]; 0 where nothing was lost."""
        return self.parts[part] / self.loss if self.loss else 0.0


def split(rows: Sequence[Lost]) -> Split:
    """The loss of these questions in parts."""
    known = no_guess(rows)
    counted = [_count(row, known) for row in rows]
    loss = fsum(row.before - row.after for row in rows)
    parts = {part: fsum(each[part] for each in counted) for part in PARTS}
    return Split(loss, parts, max(0.0, loss - fsum(parts.values())), tuple(map(_largest, rows, counted)))


def no_guess(rows: Sequence[Lost]) -> float:
    """The share of what ranking returns that is no guessing: 1 - (returned with another image) / returned, at least 0.

    A model that ranks without looking returns as much with the image of a question that has another answer.
    """
    pairs = [(row, row.ranked, row.guessed) for row in rows if row.ranked is not None and row.guessed is not None]
    returned = fsum(_returned(row, ranked) for row, ranked, _ in pairs)
    guessed = fsum(_returned(row, guess) for row, _, guess in pairs)
    return max(0.0, 1 - guessed / returned) if returned else 0.0


def _returned(row: Lost, score: float) -> float:
    """What a repair returns of a question's loss."""
    return min(max(score - row.after, 0.0), row.before - row.after)


def _count(row: Lost, known: float) -> dict[str, float]:
    """Each part of one question's loss: what its repair returns beyond those before it."""
    ranked = 0.0 if row.ranked is None else known * _returned(row, row.ranked)
    language, both = _returned(row, row.language), _returned(row, row.both)
    returned = {
        "routing": _returned(row, row.oracle),
        "format": max(_returned(row, row.lenient), ranked),
        "vision": _returned(row, row.vision),
        "prior": max(language, both) if row.blind or row.foreign else 0.0,
        "language": language,
        "together": both,
    }
    counted = {}
    above = 0.0
    for part in PARTS:
        value = max(above, returned[part])
        counted[part], above = value - above, value
    return counted


def _largest(row: Lost, counted: Mapping[str, float]) -> str:
    best = max(counted, key=lambda part: counted[part])
    left = row.before - row.after - fsum(counted.values())
    return best if counted[best] > 0 and counted[best] >= left else "rest"
