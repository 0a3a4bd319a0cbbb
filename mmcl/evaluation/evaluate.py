"""Ask the model every test question of a task, and score the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmcl.data.types import Sample, Task
from mmcl.model.features import preload
from mmcl.model.generate import generate
from mmcl.protocols import Batch, Metric, Prediction, Score

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmcl.model.assembly import Assembly
    from mmcl.progress import Progress
    from mmcl.recipe.spec import EvaluateSpec
    from mmcl.training.methods import Methods


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the matrix, measured.

    Attributes:
        predictions: one per question asked.
        score: per row and for the whole set.
        seconds: wall clock.
    """

    predictions: tuple[Prediction, ...]
    score: Score
    seconds: float


def evaluate_task(
    model: Assembly,
    methods: Methods,
    task: Task,
    metric: Metric,
    spec: EvaluateSpec,
    *,
    accelerator: Accelerator,
    progress: Progress,
    label: str,
) -> Cell:
    """Greedy answers to all test questions (or the first `spec.limit`), each over the route that the methods select."""
    started = time.perf_counter()
    questions = list(task.test)[: spec.limit]
    mine = list(range(len(questions)))[accelerator.process_index :: accelerator.num_processes]

    def track(rows: list[Batch]) -> Iterable[Batch]:
        return progress.track(rows, label=label, total=len(rows), unit="row")

    preload(model, [[questions[k] for k in mine]], progress, label)
    answered = answer(model, methods, [questions[k] for k in mine], spec, track)
    answers = dict(zip(mine, answered, strict=True))
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        answers = dict(gather_object(list(answers.items())))
    predictions = tuple(prediction(question, *answers[place]) for place, question in enumerate(questions))
    return Cell(predictions, metric(predictions), time.perf_counter() - started)


def answer(
    model: Assembly,
    methods: Methods,
    questions: Sequence[Sample],
    spec: EvaluateSpec,
    track: Callable[[list[Batch]], Iterable[Batch]] = iter,
) -> list[tuple[str, str]]:
    """Answer and route label of each question, in order."""
    routes = methods.select(model, questions)
    texts = generate(
        model,
        questions,
        routes,
        max_new_tokens=spec.max_new_tokens,
        row_tokens=spec.row_tokens,
        track=track,
    )
    return [(text, route.label) for text, route in zip(texts, routes, strict=True)]


def prediction(question: Sample, text: str, route: str) -> Prediction:
    """The record of one question asked."""
    return Prediction(
        id=question.id,
        task=question.task,
        prompt=question.question,
        text=text,
        answers=question.answers,
        route=route,
        group=question.group,
        images=tuple(image.name for image in question.images),
        metadata={**question.metadata, "digests": [image.digest for image in question.images]},
    )
