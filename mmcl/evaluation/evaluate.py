"""Ask the model every test question of a task, and score the answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmcl.data.types import Sample
from mmcl.evaluation.choices import Choices
from mmcl.evaluation.interval import interval
from mmcl.evaluation.reuse import Known, Weights, question_key
from mmcl.model.features import preload
from mmcl.model.generate import generate
from mmcl.model.likelihood import most_likely
from mmcl.protocols import Batch, Metric, Prediction, Route, Score

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmcl.model.assembly import Assembly
    from mmcl.progress import Progress
    from mmcl.recipe.spec import EvaluateSpec
    from mmcl.training.methods import Methods


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known from earlier stages.

    Attributes:
        weights: digests of the model that is asked.
        known: answers by key.
    """

    weights: Weights
    known: Mapping[str, Known] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the matrix.

    Attributes:
        predictions: one per question asked. `metadata["measured_at"]` is the stage at which the model gave the answer,
            `metadata["answer_key"]` what the answer depends on (see `mmcl.evaluation.reuse`).
        score: per row and for the whole set.
        seconds: wall clock.
    """

    predictions: tuple[Prediction, ...]
    score: Score
    seconds: float

    def interval(self) -> tuple[float, float] | None:
        """A 95 % interval for a sample of a test set; None where the metric's value is not the mean of its rows."""
        rows = self.score.rows
        if not rows or not math.isclose(math.fsum(rows) / len(rows), self.score.corpus, abs_tol=1e-9):
            return None
        # A question without images is a cluster of its own.
        about = [tuple(p.metadata["digests"]) or place for place, p in enumerate(self.predictions)]
        return interval(rows, about)


def evaluate_task(
    model: Assembly,
    methods: Methods,
    questions: Sequence[Sample],
    metric: Metric,
    spec: EvaluateSpec,
    *,
    accelerator: Accelerator,
    progress: Progress,
    label: str,
    stage: str,
    choices: Choices | None = None,
    earlier: Earlier | None = None,
) -> Cell:
    """Answers to all questions, each over the route that the methods select.

    Args:
        model: the assembly.
        methods: of the stage.
        questions: of one task.
        metric: of the task.
        spec: how to ask.
        accelerator: the processes share the questions.
        progress: shows what goes on.
        label: what is done, for the progress bar.
        stage: the stage's folder name, for the record.
        choices: take the most likely of these; None for greedy answers.
        earlier: answers that need not be asked for again; None asks everything.
    """
    started = time.perf_counter()
    mine = list(range(len(questions)))[accelerator.process_index :: accelerator.num_processes]

    def track(rows: list[Batch]) -> Iterable[Batch]:
        return progress.track(rows, label=label, total=len(rows), unit="row")

    own = [questions[k] for k in mine]
    preload(model, [own], progress, label)
    routes = methods.select(model, own)
    keys, found = _look_up(model, own, routes, spec, choices, earlier)
    todo = [k for k, known in enumerate(found) if known is None]
    texts = ask(model, [own[k] for k in todo], [routes[k] for k in todo], spec, choices, track)
    for k, text in zip(todo, texts, strict=True):
        found[k] = Known(text, stage)
    # Each process decides about its own questions; afterwards all have the same rows.
    rows = [(place, k, r.label, key) for place, k, r, key in zip(mine, found, routes, keys, strict=True)]
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        rows = gather_object(rows)
    predictions = []
    for place, known, route, key in sorted(rows, key=lambda row: row[0]):
        assert known is not None
        record = {"measured_at": known.origin} | ({"answer_key": key} if key else {})
        predictions.append(prediction(questions[place], known.text, route, record))
    return Cell(tuple(predictions), metric(predictions), time.perf_counter() - started)


def answer(model: Assembly, methods: Methods, questions: Sequence[Sample], spec: EvaluateSpec) -> list[tuple[str, str]]:
    """Greedy answer and route label of each question, in order."""
    routes = methods.select(model, questions)
    texts = ask(model, questions, routes, spec)
    return [(text, route.label) for text, route in zip(texts, routes, strict=True)]


def _look_up(
    model: Assembly,
    questions: Sequence[Sample],
    routes: Sequence[Route],
    spec: EvaluateSpec,
    choices: Choices | None,
    earlier: Earlier | None,
) -> tuple[list[str], list[Known | None]]:
    """Each question's key, and its answer where that is known."""
    if earlier is None:
        return [""] * len(questions), [None] * len(questions)
    how = ["likelihood", *choices.answers] if choices else ["greedy", spec.max_new_tokens]
    options = [*how, spec.row_tokens or model.row_tokens, model.packed]
    items = model.items(questions, routes, [[False] * len(question.turns) for question in questions])
    keys = [question_key(item, earlier.weights, options) for item in items]
    return keys, [earlier.known.get(key) for key in keys]


def ask(
    model: Assembly,
    questions: Sequence[Sample],
    routes: Sequence[Route],
    spec: EvaluateSpec,
    choices: Choices | None = None,
    track: Callable[[list[Batch]], Iterable[Batch]] = iter,
) -> list[str]:
    """The answer to each question over its route: greedy, or the most likely of the choices."""
    if not questions:
        return []
    if choices is not None:
        best = most_likely(model, questions, routes, choices.answers, row_tokens=spec.row_tokens, track=track)
        return [choices.answers[index] for index in best]
    return generate(
        model, questions, routes, max_new_tokens=spec.max_new_tokens, row_tokens=spec.row_tokens, track=track
    )


def prediction(question: Sample, text: str, route: str, record: Mapping[str, object]) -> Prediction:
    """The record of one question asked."""
    digests = [image.digest for image in question.images]
    return Prediction(
        id=question.id,
        task=question.task,
        prompt=question.question,
        text=text,
        answers=question.answers,
        route=route,
        group=question.group,
        images=tuple(image.name for image in question.images),
        metadata={**question.metadata, "digests": digests, **record},
    )
