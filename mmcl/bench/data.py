"""The questions of a measurement: whole images, the same for both sides."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

from mmcl.bench.options import Cell
from mmcl.data.images import Renamed
from mmcl.data.types import ImageSource, Sample, Samples, Task
from mmcl.errors import UserError
from mmcl.recipe import registry
from mmcl.recipe.spec import PluginSpec

SHAPES_QUESTIONS = 10
"""Questions per image of the stream `shapes` where nothing is said, about those of easy-VQA."""


def training_samples(cell: Cell) -> list[Sample]:
    """What the optimiser steps of a repetition train on, image by image."""
    return _whole_images(_tasks(cell, cell.steps * cell.batch_size), cell, cell.steps * cell.batch_size, "train")


def test_samples(cell: Cell) -> list[Sample]:
    """What is asked in a repetition of the evaluation, image by image."""
    return _whole_images(_tasks(cell, cell.test_questions), cell, cell.test_questions, "test")


def unseen(samples: Samples, salt: str) -> list[Sample]:
    """The same samples, with images that have never been encoded; equal images stay equal."""
    renamed: dict[str, ImageSource] = {}
    for sample in samples:
        for image in sample.images:
            renamed.setdefault(image.digest, Renamed(image, salt))
    return [sample.replace(images=tuple(renamed[image.digest] for image in sample.images)) for sample in samples]


def _tasks(cell: Cell, wanted: int) -> Sequence[Task]:
    return _tasks_of(cell.stream, cell.questions, cell.seed, wanted)


@functools.lru_cache(maxsize=4)  # the cells of a grid share them, and the questions of easy-VQA take a second to read
def _tasks_of(stream_name: str, questions: int | None, seed: int, wanted: int) -> Sequence[Task]:
    if stream_name == "easy_vqa":
        per_image = min(questions or 8, 8)
        images = max(64, 4 * math.ceil(wanted / per_image)) if questions else max(64, math.ceil(wanted / 6))
        spec = PluginSpec("easy_vqa", {"captions": False, "images": min(images, 4000)})
    else:
        asked = questions or SHAPES_QUESTIONS
        size = (math.ceil(wanted / 6 / asked) + 1) * asked  # there are six tasks with images
        options = {"questions_per_image": asked, "train_size": size, "test_size": size}
        spec = PluginSpec("shapes", options)
    stream = registry.build("streams", spec, Path(), seed=seed)
    tasks: Sequence[Task] = stream.tasks()
    return tasks


def _whole_images(tasks: Sequence[Task], cell: Cell, wanted: int, part: str) -> list[Sample]:
    groups: dict[tuple[str, str], list[Sample]] = {}
    for task in tasks:
        for sample in task.train if part == "train" else task.test:
            # easy-VQA's tasks share their images; those of `shapes` are numbered over all tasks
            groups.setdefault((part, sample.images[0].name), []).append(sample)
    chosen: list[Sample] = []
    for group in groups.values():
        if cell.questions is None or len(group) >= cell.questions:
            chosen += group[: cell.questions]
        if len(chosen) >= wanted:
            return chosen[:wanted]
    raise UserError(
        f"the stream has {len(chosen)} questions with {cell.questions or 'all'} on an image, {wanted} are wanted",
        where=f"--stream {cell.stream}",
        hint="ask fewer --questions per image, or take fewer --steps, or use --stream shapes",
    )
