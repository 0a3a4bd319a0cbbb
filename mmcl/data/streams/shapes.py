"""Generated images of simple shapes, as many and as many tasks as wanted; no download, the same on every machine."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, product
from typing import Literal

from mmcl.data.images import EncodedImage
from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Task, Turn
from mmcl.errors import UserError

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 140, 44),
    "blue": (31, 90, 180),
    "yellow": (235, 200, 30),
    "purple": (130, 60, 180),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
NUMBERS = ("one", "two", "three", "four")
LETTERS = "ABCDEFGH"

IMAGE_TASKS = ("shape", "colour", "count", "position", "text", "yes_no")
TEXT_TASKS = ("sum", "letter")
CAPTIONS = "captions"

WORDINGS = {
    "shape": ("What shape is this?", "Which shape do you see?", "Name the shape."),
    "colour": ("What colour is this?", "Which colour do you see?", "Name the colour."),
    "count": ("How many shapes are there?", "Count the shapes.", "What is the number of shapes?"),
    "position": ("Where is the shape?", "Which corner is the shape in?", "Name the shape's place."),
    "text": ("What letter is written?", "Which letter do you read?", "Read the letter."),
    "sum": ("What is {0} + {1}?", "Add {0} and {1}.", "How much is {0} plus {1}?"),
    "letter": ("Which letter follows {0}?", "What letter comes after {0}?", "Name the letter after {0}."),
}
TEXT_ANSWERS = {"sum": [str(n) for n in range(19)], "letter": list("BCDEFGHIJKLMNOPQRSTUVWXYZ")}


@dataclass(frozen=True)
class Drawing(EncodedImage):
    """Shapes on a light background, drawn when they are needed.

    Attributes:
        figures: (shape or letter, colour, corner) of each.
        number: makes the background differ from every other image's, so that no two images are equal.
        size: height and width in pixels.
    """

    figures: tuple[tuple[str, str, str], ...]
    number: int
    size: int

    @cached_property
    def _bytes(self) -> bytes:
        from PIL import Image, ImageDraw, ImageFont

        # Backgrounds differ without an order that would tell tasks apart: the factor has no divisor 31.
        spread = self.number * 12_347 % 31**3
        shade = tuple(224 + spread // 31**power % 31 for power in range(3))
        image = Image.new("RGB", (self.size, self.size), shade)
        draw = ImageDraw.Draw(image)
        half, rng = self.size // 2, random.Random(self.number)
        for what, colour, corner in self.figures:
            side = rng.randint(half * 5 // 8, half * 7 // 8)
            left, top = (place * half + rng.randint(0, half - side) for place in PLACES[corner])
            box = (left, top, left + side, top + side)
            paint = COLOURS[colour]
            if what == "circle":
                draw.ellipse(box, fill=paint)
            elif what == "square":
                draw.rectangle(box, fill=paint)
            elif what == "triangle":
                draw.polygon(((left, top + side), (left + side, top + side), (left + side // 2, top)), fill=paint)
            elif what == "cross":
                third = side // 3
                draw.rectangle((left + third, top, left + 2 * third, top + side), fill=paint)
                draw.rectangle((left, top + third, left + side, top + 2 * third), fill=paint)
            else:
                draw.text((left, top), what, fill=paint, font=ImageFont.load_default(size=side))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    @property
    def name(self) -> str:
        """Its number."""
        return f"{self.number:06d}.png"

    def read(self) -> bytes:
        """The PNG file."""
        return self._bytes


class Shapes:
    """Generated shapes, letters and sums as a stream of tasks.

    Image tasks: `shape`, `colour`, `count`, `position`, `text` (a rendered letter), `yes_no`; text-only tasks: `sum`,
    `letter`. A task that comes again (`shape-2`, `shape-3` ...) asks the same of new images, but answers with other
    words: `similarity` is the share of the answers that it keeps from the time before. At 1 it is the same task again;
    at 0 every old answer is wrong.

    Args:
        tasks: in order; a name may come several times.
        length: number of tasks; the names are cycled through. None for `tasks` as given.
        train_size: training samples per task.
        test_size: test questions per task.
        image_size: height and width in pixels.
        questions_per_image: samples that share an image.
        similarity: in [0, 1], see above.
        captions: add a task `captions` (kind `align`, training only) with so many samples; 0 for none.
        text_only: tasks without images that come after those in `tasks`: their names, or how many.
        order: `given`, `reversed`, or names of tasks (`shape`, `shape-2`); names that are not listed are left out.
        seed: of all that is drawn.
    """

    def __init__(
        self,
        *,
        tasks: list[str] | None = None,
        length: int | None = None,
        train_size: int = 200,
        test_size: int = 50,
        image_size: int = 64,
        questions_per_image: int = 4,
        similarity: float = 0.0,
        captions: int = 0,
        text_only: list[str] | int = 0,
        order: Literal["given", "reversed"] | list[str] = "given",
        seed: int = 0,
    ) -> None:
        names = list(tasks) if tasks is not None else list(IMAGE_TASKS)
        if isinstance(text_only, int):
            if text_only < 0:
                raise UserError(f"{text_only} is too small", where="stream.text_only", hint="at least 0, or names")
            text_only = [TEXT_TASKS[index % len(TEXT_TASKS)] for index in range(text_only)]
        with_images = [name for name in text_only if name not in TEXT_TASKS]
        if with_images:
            raise UserError(
                f"no tasks without images: {', '.join(with_images)}",
                where="stream.text_only",
                hint=f"choose from {', '.join(TEXT_TASKS)}, or write how many",
            )
        names += text_only
        unknown = [name for name in names if name not in IMAGE_TASKS + TEXT_TASKS]
        if unknown or not names:
            raise UserError(
                f"unknown tasks: {', '.join(unknown)}" if unknown else "no tasks",
                where="stream.tasks",
                hint=f"choose from {', '.join(IMAGE_TASKS + TEXT_TASKS)}",
            )
        bounds = {"train_size": train_size, "test_size": test_size, "questions_per_image": questions_per_image}
        for name, value, least in [*((k, v, 1) for k, v in bounds.items()), ("image_size", image_size, 16)]:
            if value < least:
                raise UserError(f"{value} is too small", where=f"stream.{name}", hint=f"at least {least}")
        if not 0 <= similarity <= 1:
            raise UserError(f"{similarity} is out of range", where="stream.similarity", hint="between 0 and 1")
        if length is not None and length < 1:
            raise UserError(f"{length} is too small", where="stream.length", hint="at least 1, or null")
        if captions < 0:
            raise UserError(f"{captions} is too small", where="stream.captions", hint="at least 0")
        self.bases = [names[index % len(names)] for index in range(length or len(names))]
        self.names = _ordered(_numbered(self.bases), order)
        self.train_size, self.test_size, self.image_size = train_size, test_size, image_size
        self.questions_per_image, self.similarity, self.seed = questions_per_image, similarity, seed
        self.captions = captions

    def tasks(self) -> Sequence[Task]:
        """The tasks in order, the captions first."""
        made: dict[str, Task] = {}
        books: dict[str, dict[str, str]] = {}
        times: Counter[str] = Counter()
        self._number = 0
        for base, name in zip(self.bases, _numbered(self.bases), strict=True):
            times[base] += 1
            books[base] = self._book(base, times[base], books.get(base))
            rng = self._rng(name)
            train = self._samples(name, base, self.train_size, books[base], rng, train=True)
            test = self._samples(name, base, self.test_size, books[base], rng, train=False)
            choices = tuple(dict.fromkeys(books[base].values()))
            made[name] = Task(name=name, train=train, test=test, metric="exact", choices=choices)
        result = [made[name] for name in self.names]  # a task is the same in every order
        if self.captions:
            result.insert(0, Task(name=CAPTIONS, train=self._captions(), kind="align"))
        return result

    def _rng(self, *parts: object) -> random.Random:
        return random.Random("/".join(str(part) for part in (self.seed, *parts)))

    def _book(self, base: str, time: int, before: dict[str, str] | None) -> dict[str, str]:
        """The word for each answer, the `time`-th time that the task comes."""
        answers = _answers(base)
        if before is None:
            return {answer: answer for answer in answers}
        rng = self._rng("book", base, time)
        kept = set(rng.sample(answers, round(self.similarity * len(answers))))
        words = _words(rng, set(before.values()))
        return {answer: before[answer] if answer in kept else next(words) for answer in answers}

    def _samples(
        self, name: str, base: str, size: int, book: dict[str, str], rng: random.Random, *, train: bool
    ) -> list[Sample]:
        part = "train" if train else "test"
        samples: list[Sample] = []
        while len(samples) < size:
            image, facts = self._scene(base, rng)
            for _ in range(min(self.questions_per_image if image else 1, size - len(samples))):
                text, answer, group = _question(base, facts, rng)
                turn = Turn("user", f"{IMAGE_PLACEHOLDER}\n{text}" if image else text)
                samples.append(
                    Sample(
                        id=f"{part}-{len(samples):05d}",
                        task=name,
                        turns=(turn, Turn("assistant", book[answer])) if train else (turn,),
                        images=(image,) if image else (),
                        answers=() if train else (book[answer],),
                        group=group,
                    )
                )
        return samples

    def _scene(self, base: str, rng: random.Random) -> tuple[Drawing | None, tuple[str, ...]]:
        """An image, and the facts that questions are about."""
        if base == "sum":
            return None, (str(rng.randrange(10)), str(rng.randrange(10)))
        if base == "letter":
            return None, (chr(ord("A") + rng.randrange(25)),)
        colour = rng.choice(list(COLOURS))
        what = rng.choice(LETTERS if base == "text" else SHAPES)
        corners = rng.sample(list(PLACES), rng.randint(1, 4) if base == "count" else 1)
        figures = tuple((what, colour, corner) for corner in corners)
        self._number += 1
        return Drawing(figures, self._number, self.image_size), (what, colour, corners[0], NUMBERS[len(corners) - 1])

    def _captions(self) -> list[Sample]:
        rng = self._rng(CAPTIONS)
        samples = []
        for index in range(self.captions):
            image, (what, colour, corner, _) = self._scene("shape", rng)
            assert image is not None
            turns = (
                Turn("user", f"{IMAGE_PLACEHOLDER}\nDescribe the image."),
                Turn("assistant", f"a {colour} {what} at the {corner}"),
            )
            identity = f"train-{index:05d}"
            samples.append(Sample(id=identity, task=CAPTIONS, turns=turns, images=(image,), group="caption"))
        return samples


def _numbered(bases: Sequence[str]) -> list[str]:
    """Names of tasks: `shape`, and `shape-2` where that comes again."""
    times: Counter[str] = Counter()
    names = []
    for base in bases:
        times[base] += 1
        names.append(base if times[base] == 1 else f"{base}-{times[base]}")
    return names


def _ordered(names: list[str], order: Literal["given", "reversed"] | list[str]) -> list[str]:
    if isinstance(order, str):
        return names if order == "given" else names[::-1]
    unknown = [name for name in order if name not in names]
    if unknown or len(set(order)) != len(order) or not order:
        raise UserError(
            f"no such tasks: {', '.join(unknown)}" if unknown else "a task twice, or none",
            where="stream.order",
            hint=f"name each of these at most once: {', '.join(names)}",
        )
    return list(order)


def _answers(base: str) -> list[str]:
    facts = {"shape": SHAPES, "colour": COLOURS, "position": PLACES, "count": NUMBERS, "text": LETTERS}
    return list(facts.get(base) or TEXT_ANSWERS.get(base) or ("yes", "no"))


def _question(base: str, facts: tuple[str, ...], rng: random.Random) -> tuple[str, str, str]:
    """Text, answer and group of one question."""
    if base == "yes_no":
        what, colour, *_ = facts
        about, truth, choices = rng.choice((("shape", what, SHAPES), ("colour", colour, tuple(COLOURS))))
        asked = truth if rng.random() < 0.5 else rng.choice([choice for choice in choices if choice != truth])
        return f"Is the {about} {asked}?", "yes" if asked == truth else "no", f"yes_no/{about}"
    index = rng.randrange(3)
    text = WORDINGS[base][index].format(*facts)
    if base == "sum":
        answer = str(int(facts[0]) + int(facts[1]))
    elif base == "letter":
        answer = chr(ord(facts[0]) + 1)
    else:
        answer = facts[{"shape": 0, "text": 0, "colour": 1, "position": 2, "count": 3}[base]]
    return text, answer, f"{base}/{index}"


def _words(rng: random.Random, used: set[str]) -> Iterator[str]:
    """Made-up words of three letters that have not been used, without end."""
    short = ["".join(letters) for letters in product("bdfgklmnprstvz", "aeiou", "bdfgklmnprstvz")]
    rng.shuffle(short)
    yield from (word for word in short if word not in used)
    yield from (f"{word}{number}" for number in count(2) for word in short)
