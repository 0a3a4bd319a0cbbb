"""easy-VQA: 5,000 small images of one coloured shape each, with 48,248 questions; the data come with its package."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmcl.data.images import FileImage
from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Task, Turn
from mmcl.errors import Problem, UserError

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")

VOCABULARIES: Mapping[str, tuple[str, ...]] = {
    "shapes": SHAPES,
    "warm": ("red", "yellow", "brown"),
    "cool": ("blue", "green", "teal"),
    "neutral": ("black", "gray"),
    "yes_no": ("yes", "no"),
}
"""The answers of each task of the split `answers`; no two tasks share one."""

Part = Literal["train", "test"]


class EasyVQA:
    r"""Questions about one coloured shape, split by question type, answers or image property (package easy-vqa).

    The training and test questions and images are those of the data set (Victor Zhou, 2019). Splits:

    - `question_type`: `shape`, `color` (what is it), `has_shape`, `has_color` (is it there; half of these are negated).
      What is asked changes, over the same images.
    - `answers`: `shapes`, `warm`, `cool`, `neutral` colours, `yes_no`. Each task has answers of its own.
    - `image_property`: all kinds of questions, about the images of one shape (or colour) at a time.

    Half of the yes-no questions have the answer yes, but the wording gives most of it away: seven of eight negated
    colour questions, and two of three negated shape questions, are right with yes. Groups tell the wordings apart.

    Args:
        split: what distinguishes the tasks.
        image_property: for the split of that name: `shape` gives three tasks, `color` eight.
        order: `given`, `reversed`, or names of tasks; names that are not listed are left out.
        train_size: training questions per task, whole images at a time, so possibly a few less; null for all.
        test_size: test questions per task, in the same way.
        images: use this many of the 4,000 training images, for all tasks and captions; null for all.
        captions: add the training task `captions` of kind `align`: the shape and colour of training images in words.
        caption_size: how many captions; null for one per image.
        caption_prompt: what is asked for a caption.
        prompt_suffix: put after every question, such as "\nAnswer the question using a single word or phrase."
        seed: decides which images are taken.
    """

    def __init__(
        self,
        *,
        split: Literal["question_type", "answers", "image_property"] = "question_type",
        image_property: Literal["shape", "color"] = "shape",
        order: Literal["given", "reversed"] | list[str] = "given",
        train_size: int | None = None,
        test_size: int | None = None,
        images: int | None = None,
        captions: bool = True,
        caption_size: int | None = None,
        caption_prompt: str = "Describe the image.",
        prompt_suffix: str = "",
        seed: int = 0,
    ) -> None:
        names: dict[str, tuple[str, ...]] = {
            "question_type": ("shape", "color", "has_shape", "has_color"),
            "answers": tuple(VOCABULARIES),
            "image_property": SHAPES if image_property == "shape" else COLOURS,
        }
        self.split = split
        self.image_property = image_property
        self.names, problems = _ordered(names[split], order)
        self.train_size = train_size
        self.test_size = test_size
        self.images = images
        self.captions = captions
        self.caption_size = caption_size
        self.caption_prompt = caption_prompt
        self.prompt_suffix = prompt_suffix
        self.seed = seed
        sizes = {"train_size": train_size, "test_size": test_size, "images": images, "caption_size": caption_size}
        problems += [
            Problem(f"stream.{key}", f"{size} is not possible", "write 1 or more, or leave it out for all there is")
            for key, size in sizes.items()
            if size is not None and size < 1
        ]
        if problems:
            raise UserError(problems=problems)

    def tasks(self) -> Sequence[Task]:
        """The tasks in order, the captions first.

        Raises:
            UserError: the data are not installed.
        """
        train, test = self._part("train"), self._part("test")
        if self.images is not None:
            kept = set(self._ranked("train", {question.image for question in train})[: self.images])
            train = [question for question in train if question.image in kept]
        of_train = self._by_task(train)
        looks = _looks(train)
        captioned = self._ranked("train", looks["shape"].keys() & looks["color"].keys())[: self.caption_size]
        problems = [
            Problem("stream.images", f"no question of the task `{name}` is about these images", "raise `images`")
            for name in self.names
            if not of_train.get(name)
        ]
        if self.captions and not captioned:
            problems.append(Problem("stream.images", "no caption can be made of these images", "raise `images`"))
        if problems:
            raise UserError(problems=problems)
        of_test = self._by_task(test)
        images = _Images()
        tasks = [self._caption_task(captioned, looks, images)] if self.captions else []
        parts: tuple[tuple[Part, dict[str, list[_Question]], int | None], ...]
        parts = (("train", of_train, self.train_size), ("test", of_test, self.test_size))
        for name in self.names:
            samples: dict[Part, list[Sample]] = {}
            for part, by_task, size in parts:
                chosen = self._choose(part, by_task[name], size)
                samples[part] = [self._sample(name, part, each, images.get(part, each.image)) for each in chosen]
            tasks.append(Task(name=name, train=samples["train"], test=samples["test"], metric="exact"))
        return tasks

    def _part(self, part: Part) -> list[_Question]:
        file = _folder(part) / "questions.json"
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            hint = "install the package again: pip install --force-reinstall --no-deps easy-vqa"
            raise UserError(f"the questions of easy-VQA can't be read: {error}", where=str(file), hint=hint) from error
        return [_Question.parse(number, *row) for number, row in enumerate(rows)]

    def _by_task(self, questions: Sequence[_Question]) -> dict[str, list[_Question]]:
        task_of_answer = {answer: name for name, answers in VOCABULARIES.items() for answer in answers}
        task_of_image = _looks(questions)[self.image_property] if self.split == "image_property" else {}
        by_task: dict[str, list[_Question]] = {}
        for question in questions:
            if self.split == "question_type":
                name = question.type
            elif self.split == "answers":
                name = task_of_answer[question.answer]
            else:
                name = task_of_image.get(question.image, "")  # nothing says what is in a few of the images
            by_task.setdefault(name, []).append(question)
        return by_task

    def _choose(self, part: Part, questions: Sequence[_Question], size: int | None) -> list[_Question]:
        """Up to `size` questions, image by image; an image whose questions don't all fit in is passed over."""
        by_image: dict[int, list[_Question]] = {}
        for question in questions:
            by_image.setdefault(question.image, []).append(question)
        ranked = [by_image[image] for image in self._ranked(part, by_image)]
        if size is None:
            return [question for group in ranked for question in group]
        chosen: list[_Question] = []
        for group in ranked:
            if len(chosen) + len(group) <= size:
                chosen += group
        return chosen or ranked[0][:size]  # where not one image fits in whole

    def _ranked(self, part: Part, images: Iterable[int]) -> list[int]:
        """In an order that depends on the seed alone, so tasks share images and a larger size only adds some."""
        return sorted(images, key=lambda image: hashlib.sha256(f"{self.seed}/{part}/{image}".encode()).digest())

    def _sample(self, task: str, part: Part, question: _Question, image: FileImage) -> Sample:
        asked = Turn("user", f"{IMAGE_PLACEHOLDER}\n{question.text}{self.prompt_suffix}")
        return Sample(
            id=f"{part}-{question.number}",
            task=task,
            turns=(asked, Turn("assistant", question.answer)) if part == "train" else (asked,),
            images=(image,),
            answers=(question.answer,) if part == "test" else (),
            group=question.group,
        )

    def _caption_task(self, numbers: Sequence[int], looks: Mapping[str, Mapping[int, str]], images: _Images) -> Task:
        asked = Turn("user", f"{IMAGE_PLACEHOLDER}\n{self.caption_prompt}")
        samples = [
            Sample(
                id=f"caption-{number}",
                task="captions",
                turns=(asked, Turn("assistant", f"a {looks['color'][number]} {looks['shape'][number]}")),
                images=(images.get("train", number),),
                group=looks["shape"][number],
            )
            for number in numbers
        ]
        return Task(name="captions", train=samples, kind="align")


@dataclass(frozen=True, slots=True)
class _Question:
    """One row of the data set, with what its words say.

    Attributes:
        number: its place in the file.
        image: the number of its image.
        type: one of the tasks of the split `question_type`.
        shape: the shape that the question names, or nothing.
        colour: the colour that the question names, or nothing.
        negated: whether it asks for the opposite.
    """

    number: int
    text: str
    answer: str
    image: int
    type: str
    shape: str
    colour: str
    negated: bool

    @classmethod
    def parse(cls, number: int, text: str, answer: str, image: int) -> _Question:
        words = re.findall("[a-z]+", text)
        shape = next((word for word in words if word in SHAPES), "")
        colour = next((word for word in words if word in COLOURS), "")
        if "what" in words:
            kind = "color" if "color" in words else "shape"
        else:
            kind = "has_shape" if shape else "has_color"
        return cls(number, text, answer, image, kind, shape, colour, "no" in words or "not" in words)

    @property
    def group(self) -> str:
        """The type, and whether it is negated, or names the other property of the shape."""
        if self.type.startswith("has"):
            return f"{self.type}, {'negated' if self.negated else 'plain'}"
        return f"{self.type}, {'with a hint' if self.shape or self.colour else 'plain'}"


def _looks(questions: Sequence[_Question]) -> dict[str, dict[int, str]]:
    """Shape and colour by image, as far as its questions with their answers tell them."""
    looks: dict[str, dict[int, str]] = {"shape": {}, "color": {}}
    for question in questions:
        if question.type in looks:  # "what is the red shape?" also says that it is red
            stated = (question.shape, question.colour)
            looks[question.type][question.image] = question.answer
        else:
            stated = (question.shape, question.colour) if (question.answer == "yes") != question.negated else ("", "")
        for kind, value in zip(("shape", "color"), stated, strict=True):
            if value:
                looks[kind][question.image] = value
    return looks


def _ordered(
    names: tuple[str, ...], order: Literal["given", "reversed"] | list[str]
) -> tuple[tuple[str, ...], list[Problem]]:
    if isinstance(order, str):
        return (names if order == "given" else names[::-1]), []
    hint = f"the tasks of this split are {', '.join(names)}"
    problems = [Problem("stream.order", f"there is no task `{name}`", hint) for name in order if name not in names]
    problems += [
        Problem("stream.order", f"`{name}` stands there {count} times", "name each task once")
        for name, count in Counter(order).items()
        if count > 1
    ]
    if not order:
        problems.append(Problem("stream.order", "no task is named", hint))
    return tuple(order), problems


def _folder(part: Part) -> Path:
    found = importlib.util.find_spec("easy_vqa")  # not imported: only its folder is wanted
    if found is None or found.origin is None:
        raise UserError("the package easy-vqa is not installed", where="stream", hint="pip install easy-vqa")
    return Path(found.origin).parent / "data" / part


class _Images:
    """One object per image file, so that its digest is computed once for all questions."""

    def __init__(self) -> None:
        self._folders: dict[Part, Path] = {}
        self._images: dict[tuple[Part, int], FileImage] = {}

    def get(self, part: Part, number: int) -> FileImage:
        if part not in self._folders:
            self._folders[part] = _folder(part) / "images"
        if (part, number) not in self._images:
            self._images[part, number] = FileImage(self._folders[part], f"{number}.png")
        return self._images[part, number]
