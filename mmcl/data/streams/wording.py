"""How the stream `shapes` asks: kinds of questions, their values, phrasings and answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .scenes import COLOURS, COUNTS, LETTERS, PLACES, SHAPES

PLURALS = {
    word: f"{word}s"
    for word in ("cat", "dog", "car", "tree", "book", "chair", "lamp", "bird", "cup", "door", "hand", "road")
} | {"box": "boxes", "bus": "buses", "baby": "babies", "city": "cities", "man": "men", "child": "children"}
_PAIRS = "hot cold,big small,high low,fast slow,old new,hard soft,wet dry,open closed,full empty,light dark"
OPPOSITES = {a: b for pair in _PAIRS.split(",") for a, b in (pair.split(), pair.split()[::-1])}
SUMS = {f"{a} plus {b}": str(a + b) for a in range(1, 6) for b in range(1, 6)}
FOLLOWING = dict(zip(LETTERS, LETTERS[1:], strict=False))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of question.

    Attributes:
        phrasings: with `{x}` where the value is named; the first part of every one tells the kind.
        answers: the answer by value.
        image: whether the question is about an image.
    """

    phrasings: tuple[str, ...]
    answers: Mapping[str, str]
    image: bool = True


def _same(values: Sequence[str]) -> dict[str, str]:
    return {value: value for value in values}


KINDS: Mapping[str, Kind] = {
    "shape": Kind(
        ("What shape is it?", "Which shape is shown?", "What is the shape?", "What shape do you see?"), _same(SHAPES)
    ),
    "colour": Kind(
        ("What colour is it?", "Which colour is shown?", "What is the colour?", "What colour do you see?"),
        _same(tuple(COLOURS)),
    ),
    "count": Kind(
        ("How many are there?", "How many objects are shown?", "How many do you see?", "What is the number of objects?"),
        _same(COUNTS),
    ),
    "position": Kind(
        ("Where is it?", "Where in the image is it?", "Where is the object?", "On which side is it?"),
        _same(tuple(PLACES)),
    ),
    "text": Kind(
        ("Which letter is it?", "What letter is shown?", "What is the letter?", "What is written?"), _same(LETTERS)
    ),
    "yes_no": Kind(
        ("Is it {x}?", "Is the colour {x}?", "Do you see {x}?", "Is {x} shown?"),
        {f"{colour}, {answer}": answer for colour in COLOURS for answer in ("yes", "no")},
    ),
    "plural": Kind(
        ("What is the plural of {x}?", "Give the plural of {x}.", "One {x}, two what?", "Plural of {x}?"),
        PLURALS,
        image=False,
    ),
    "opposite": Kind(
        ("What is the opposite of {x}?", "Give the opposite of {x}.", "Not {x}, but what?", "Opposite of {x}?"),
        OPPOSITES,
        image=False,
    ),
    "sum": Kind(
        ("What is {x}?", "How much is {x}?", "Work out {x}.", "What does {x} make?"),
        SUMS,
        image=False,
    ),
    "next_letter": Kind(
        ("Which letter comes after {x}?", "What letter follows {x}?", "After {x} comes which letter?", "{x}, then?"),
        FOLLOWING,
        image=False,
    ),
}
TEXT_KINDS = tuple(name for name, kind in KINDS.items() if not kind.image)


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of a task's mapping from what is asked and seen to the answer.

    Attributes:
        kind: a key of `KINDS`.
        value: what is seen or asked for.
        answer: the right answer.
        language: the invented language of the answer, which the question names; empty for English.
    """

    kind: str
    value: str
    answer: str
    language: str = ""

    def question(self, phrasing: int) -> str:
        """The question in one of the kind's phrasings."""
        text = KINDS[self.kind].phrasings[phrasing].format(x=self.value.split(",")[0])
        return f"{text} Answer in {self.language.capitalize()}." if self.language else text


def cells_of(kind: str, version: int, seed: int) -> list[Cell]:
    """All entries of a kind.

    Args:
        kind: a key of `KINDS`.
        version: from 2 on, the answers are invented words, others in every version.
        seed: decides the words.
    """
    answers = KINDS[kind].answers
    if version == 1:
        return [Cell(kind, value, answer) for value, answer in answers.items()]
    # Words of one version never mean two things, and different versions have different words.
    language, *words = _invented(1 + len(set(answers.values())), random.Random(f"{seed}/words/{kind}"), version)
    translated = dict(zip(dict.fromkeys(answers.values()), words, strict=True))
    return [Cell(kind, value, translated[answer], language) for value, answer in answers.items()]


def _invented(count: int, rng: random.Random, version: int) -> list[str]:
    """Invented words of three syllables that no earlier version has."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    syllables = [consonant + vowel for consonant in consonants for vowel in vowels]
    seen: set[str] = set()
    words: list[str] = []
    for _ in range(version - 1):
        words = []
        while len(words) < count:
            word = "".join(rng.choice(syllables) for _ in range(3))
            if word not in seen:
                seen.add(word)
                words.append(word)
    return words
