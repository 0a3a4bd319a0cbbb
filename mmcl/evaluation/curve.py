"""The learning curve of a stage: its own questions, asked while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmcl.data.types import Task
from mmcl.evaluation.choices import choices_of
from mmcl.evaluation.evaluate import ask, prediction
from mmcl.protocols import Metric

if TYPE_CHECKING:
    from mmcl.model.assembly import Assembly
    from mmcl.recipe.spec import EvaluateSpec
    from mmcl.training.methods import Methods

DEFINITION = "score on the stage's own questions against samples trained on, over the route that trains"


class Curve:
    """Collects the points of one stage.

    Args:
        columns: the tasks that are asked, with the questions to ask.
        metrics: of each.
        spec: how to ask.
    """

    def __init__(self, columns: Sequence[Task], metrics: Sequence[Metric], spec: EvaluateSpec) -> None:
        self.columns = columns
        self.metrics = metrics
        self.spec = spec
        self.points: list[dict[str, Any]] = []

    def steps(self, total: int) -> set[int]:
        """After how many of the stage's steps it is measured: before the first, after the last, evenly between."""
        return {round(total * part / self.spec.curve) for part in range(self.spec.curve + 1)}

    def measure(self, model: Assembly, methods: Methods, samples: int, tokens: int) -> None:
        """Add a point.

        Args:
            model: as it is now.
            methods: of the stage; their routes for training, as routers know a task only when it is over.
            samples: trained on so far.
            tokens: the same in tokens.
        """
        scores = {}
        for task, metric in zip(self.columns, self.metrics, strict=True):
            choices = choices_of(task) if self.spec.answers == "likelihood" else None
            routes = methods.assign(model, task.test)
            texts = ask(model, task.test, routes, self.spec, choices)
            rows = [
                prediction(question, text, route.label, {})
                for question, text, route in zip(task.test, texts, routes, strict=True)
            ]
            scores[task.name] = metric(rows).corpus
        self.points.append({"samples": samples, "tokens": tokens, "scores": scores})


def samples_to(points: Sequence[Mapping[str, Any]], task: str, threshold: float) -> int | None:
    """How many samples a task took to reach a score: the first point at or above it; None where none is."""
    return next((int(point["samples"]) for point in points if point["scores"][task] >= threshold), None)
