"""What quotas per modality are for: a rare text-only task in a history of images."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from mmcl.data.streams.shapes import Shapes
from mmcl.data.types import Task
from mmcl.methods.replay import Replay
from mmcl.progress import Progress
from mmcl.recipe.spec import TrainSpec
from mmcl.testing import tiny_assembly
from mmcl.training.loop import train_task
from mmcl.training.methods import Methods
from mmcl.training.objectives.answers import Answers


def forgotten(seed: int, quota: str) -> float:
    """Score lost on 80 text-only rows after 360 and 360 rows with images (1 to 9), at 24 remembered rows."""
    letter, colour, position = Shapes(tasks=["letter", "colour", "position"], train_size=360, seed=seed).tasks()
    rows = letter.train[:80]
    asked = {row.question: row.replace(turns=row.turns[:-1], answers=(row.reply,)) for row in rows}
    rare = replace(letter, train=rows, test=list(asked.values()))
    model = tiny_assembly(seed=seed, projector="mlp")
    model.recipe_train = ("projector", "language")
    model.set_trainable(model.recipe_train)
    method = Replay(rows=24, quota=quota, seed=seed)  # type: ignore[arg-type]
    methods, rng = Methods({"replay": method}), random.Random(seed)
    torch.manual_seed(seed)
    scores: list[float] = []
    seen: list[Task] = []
    for task, epochs in ((rare, 120), (colour, 3), (position, 3)):
        model.calibrate(task.train)
        methods.begin_task(model, task, {"replay": seen})
        spec = TrainSpec(epochs=epochs, batch_size=8, learning_rate=1e-2)
        train_task(
            model,
            methods,
            task,
            spec,
            Answers(),
            accelerator=Accelerator(),
            rng=rng,
            progress=Progress.silent(),
            label="test",
        )
        methods.end_task(model, task)
        seen.append(task)
        answers = model.generate(rare.test)
        scores.append(sum(a == q.answers[0] for a, q in zip(answers, rare.test, strict=True)) / len(rare.test))
    assert scores[0] > 0.5  # it was learned
    return scores[0] - scores[-1]


@pytest.mark.slow
def test_equal_quotas_protect_a_rare_modality() -> None:
    gains = [forgotten(seed, "proportional") - forgotten(seed, "task+modality+group") for seed in range(5)]
    mean, error = statistics.mean(gains), statistics.stdev(gains) / 5**0.5
    print(f"forgetting avoided: {mean:.3f}, 95 % interval {mean - 2.776 * error:.3f} to {mean + 2.776 * error:.3f}")
    assert mean - 2.776 * error > 0, gains  # Student's t with 4 degrees of freedom


def test_a_rare_modality_keeps_its_quota() -> None:
    tasks = Shapes(tasks=["letter", "colour", "position"], train_size=360).tasks()
    model = tiny_assembly()
    kept = {}
    for quota in ("proportional", "task+modality+group"):
        method = Replay(rows=24, quota=quota)  # type: ignore[arg-type]
        for task in (replace(tasks[0], train=tasks[0].train[:80]), *tasks[1:]):
            method.begin_task(model, task, ())
            method.training_samples(model, task, task.train, random.Random(0))
            method.end_task(model, task)
        drawn = [record.modality for record in method.memory]
        kept[quota] = drawn.count("text")
    assert kept["task+modality+group"] in (8, 9)  # a third of the tasks, a third of the rows
    assert kept["proportional"] <= 4
