"""Is it recoverable? A few samples of a forgotten task, learned by the model that forgot it and by its parent."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mmcl.data.types import Samples, Task
from mmcl.evaluation.curve import Curve
from mmcl.protocols import Metric, Model, Objective, Route
from mmcl.recipe import registry
from mmcl.session import Session
from mmcl.stages import Stage
from mmcl.training.loop import train_task
from mmcl.training.methods import Methods

DEFINITION = (
    "A few training samples of the task, for a few steps of constant learning rate (the peak of the stage that learned "
    "it), over the task's own route, without replay or further losses; the same parameters train as at that stage. The "
    "parent is the model before that stage. What was forgotten but not lost comes back faster than it was learned."
)


class RoutesOnly(Methods):
    """The training routes of methods and nothing else of them, in training and in tests."""

    def __init__(self, methods: Methods) -> None:
        super().__init__({})
        self._routes = methods

    def assign(self, model: Model, samples: Samples) -> list[Route]:
        """As the methods do."""
        return self._routes.assign(model, samples)

    def select(self, model: Model, samples: Samples) -> list[Route]:
        """The route of the sample's own task."""
        return self._routes.assign(model, samples)


class Doubling(Curve):
    """Measures after 0, 1, 2, 4, 8 ... steps and after the last."""

    def steps(self, total: int) -> set[int]:
        """After which steps it is measured."""
        return {0, total} | {2**power for power in range(total.bit_length())}


def begin(session: Session, stage: Stage, task: Task, tasks: Mapping[str, Task]) -> Methods:
    """Let the stage's methods begin with the samples of `task` at the stage's parent, as the stage did with all.

    Args:
        session: at the parent.
        stage: that learned the task.
        task: with the samples that will be learned.
        tasks: of the stages, by name.
    """
    assert stage.task is not None
    torch.manual_seed(int(stage.hash[:15], 16))
    methods = session.open(stage, task)
    session.begin(methods, replace(stage.task, train=task.train), tasks)
    return methods


def relearn(
    session: Session,
    methods: Methods,
    stage: Stage,
    task: Task,
    asked: Samples,
    metric: Metric,
    steps: int,
    label: str,
) -> list[tuple[int, float]]:
    """(step, score on the questions asked) while a few samples are learned. What trains was chosen before.

    Args:
        session: holds the model, which is changed.
        methods: give the routes.
        stage: that learned the task, whose settings count.
        task: to be learned again, with the few samples.
        asked: its questions.
        metric: of the task.
        steps: of the optimiser.
        label: for the progress bar.
    """
    size = min(stage.train.batch_size, len(task.train))
    spec = replace(
        stage.train,
        batch_size=size,
        epochs=math.ceil(steps * size / len(task.train)),
        max_steps=steps,
        schedule="constant",
        warmup=0.0,
    )
    seed = int(stage.hash[:15], 16)
    torch.manual_seed(seed)
    objective: Objective = registry.build("objectives", stage.objective, session.recipe.folder)
    curve = Doubling([replace(task, test=list(asked))], [metric], session.recipe.evaluate)
    train_task(
        session.model,
        RoutesOnly(methods),
        task,
        spec,
        objective,
        accelerator=session.accelerator,
        rng=random.Random(seed),
        progress=session.progress,
        label=label,
        watch=curve,
    )
    stops = sorted(curve.steps(steps))
    return [(step, float(point["scores"][task.name])) for step, point in zip(stops, curve.points, strict=True)]


def patterns(names: Sequence[str]) -> list[str]:
    """Patterns for `set_trainable` that mean these parameters (and others of the same modules)."""
    return sorted({name.rpartition(".")[0] for name in names})
