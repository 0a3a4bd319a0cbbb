"""Steps of training on tiny models, for tests that compare a method with its formulas."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from mmcl.data.types import Task
from mmcl.progress import Progress
from mmcl.protocols import Method
from mmcl.recipe.spec import TrainSpec
from mmcl.testing import tiny_assembly
from mmcl.training.loop import train_task
from mmcl.training.methods import Methods
from mmcl.training.objectives.answers import Answers

Train = Callable[..., Any]


@pytest.fixture
def train() -> Train:
    """`train(tasks, *methods, model=None, steps=4)`: the model after the tasks, one after another."""

    def go(tasks: Sequence[Task], *methods: Method, model: Any = None, steps: int = 4, rate: float = 1e-2) -> Any:
        model = model or warm(tiny_assembly())
        composed = Methods({str(k): method for k, method in enumerate(methods)})
        for method in methods:
            method.setup(model)
        seen: list[Task] = []
        for task in tasks:
            torch.manual_seed(0)
            model.set_trainable(model.recipe_train)
            composed.begin_task(model, task, dict.fromkeys(composed.methods, seen))
            train_task(
                model,
                composed,
                task,
                TrainSpec(batch_size=4, epochs=steps, max_steps=steps, learning_rate=rate, schedule="constant", clip=0),
                Answers(),
                accelerator=Accelerator(),
                rng=random.Random(0),
                progress=Progress.silent(),
                label="test",
            )
            composed.end_task(model, task)
            seen = [*seen, task]
        return model

    return go


def warm(model: Any) -> Any:
    """The model with adapters that are no longer fresh: a fresh one has gradients of zero on one side."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.trainable().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def model() -> Any:
    """A tiny model with adapters that are no longer fresh."""
    return warm(tiny_assembly())
