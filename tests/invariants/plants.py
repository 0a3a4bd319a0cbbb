"""Causes of forgetting, planted: streams and methods that recipes of these tests name as `./plants.py:Class`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mmcl.data.streams.shapes import Shapes
from mmcl.data.types import Sample, Samples, Task, Turn
from mmcl.methods.projector_experts import ProjectorExperts
from mmcl.protocols import BASE, Method, Model, Route


def answered(sample: Sample, task: str, text: str) -> Sample:
    """The sample with another answer."""
    return sample.replace(task=task, turns=(*sample.turns[:-1], Turn("assistant", text)))


class Sentences:
    """Colours in a word; then the same in a sentence, which changes the format of the answers and nothing else."""

    def __init__(self, *, sentence: str = "it is {}, I think") -> None:
        self.sentence = sentence

    def tasks(self) -> Sequence[Task]:
        (colour,) = Shapes(tasks=["colour"], train_size=320, test_size=60, questions_per_image=1).tasks()
        told = [answered(sample, "told", self.sentence.format(sample.reply)) for sample in colour.train]
        test = [sample.replace(task="told") for sample in colour.test]
        return [colour, replace(colour, name="told", train=told, test=test, metric="contains")]


class Hearsay:
    """Colours; then the same questions and images with one answer to all, so that nobody needs to look."""

    def tasks(self) -> Sequence[Task]:
        (colour,) = Shapes(tasks=["colour"], train_size=320, test_size=60, questions_per_image=1).tasks()
        told = [answered(sample, "hearsay", "red") for sample in colour.train[:160]]
        test = [sample.replace(task="hearsay", answers=("red",)) for sample in colour.test]
        return [colour, replace(colour, name="hearsay", train=told, test=test)]


class Scramble(Method):
    """At the end of every task but the first, the projector's output channels change places."""

    def __init__(self) -> None:
        self.tasks = 0

    def end_task(self, model: Model, task: Task) -> None:
        self.tasks += 1
        if self.tasks > 1:
            last = [module for module in model.projector.modules() if isinstance(module, torch.nn.Linear)][-1]
            order = torch.randperm(len(last.weight), generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                last.weight.copy_(last.weight[order])
                last.bias.copy_(last.bias[order])

    def state_dict(self) -> dict[str, int]:
        return {"tasks": self.tasks}

    def load_state_dict(self, model: Model, state: dict[str, int]) -> None:  # type: ignore[override]
        self.tasks = state["tasks"]


class Lost(ProjectorExperts):
    """Experts whose router sends everything to the latest one."""

    def select(self, model: Model, samples: Samples) -> Sequence[Route]:
        experts = list(self._units)
        return [self._route(experts[-1]) if experts else BASE for _ in samples]


class Opposites:
    """Two tasks with the same questions and opposite answers, every second question without an image."""

    def tasks(self) -> Sequence[Task]:
        (colour,) = Shapes(tasks=["colour"], train_size=96, test_size=12).tasks()
        return [self.task(colour, "first", "yes"), self.task(colour, "second", "no")]

    def task(self, base: Task, name: str, answer: str) -> Task:
        train = [self.sample(sample, name, place) for place, sample in enumerate(base.train)]
        test = [self.sample(sample, name, place) for place, sample in enumerate(base.test)]
        return Task(
            name,
            [answered(sample.replace(turns=(*sample.turns, Turn("assistant", ""))), name, answer) for sample in train],
            [sample.replace(answers=(answer,)) for sample in test],
            choices=("yes", "no"),
        )

    def sample(self, sample: Sample, task: str, place: int) -> Sample:
        text = sample.question if place % 2 else sample.turns[0].text
        images = () if place % 2 else sample.images
        return sample.replace(task=task, id=f"{place}", turns=(Turn("user", text),), images=images)
