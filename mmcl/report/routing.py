"""Which expert each test question went through."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from mmcl.report.run import Variant

BASE = "base"


@dataclass(frozen=True, slots=True)
class Routing:
    """The routing confusion matrix after one stage.

    Attributes:
        stage: label of the stage.
        tasks: rows: the true tasks, which the router does not see unless its method is an oracle.
        experts: columns: the experts taken; with mixtures, the one with the largest weight.
        counts: questions of `tasks[i]` that went to `experts[j]`.
        own: the expert that each task was trained with; None where that is not known.
        per_task: share of the task's questions that went to its own expert; None without one.
        accuracy: the same over all questions of tasks that have an expert.
    """

    stage: str
    tasks: tuple[str, ...]
    experts: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    own: tuple[str | None, ...]
    per_task: tuple[float | None, ...]
    accuracy: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def routing(variant: Variant) -> Routing | None:
    """The routes of the last stage's predictions; None if all went through the base projector."""
    if not variant.row_stages:
        return None
    last = variant.row_stages[-1]
    taken = {task: Counter(row.route for row in last.answers(task)) for task in variant.tasks if task in last.cells}
    if all(set(routes) <= {BASE} for routes in taken.values()):
        return None
    seen = {route for routes in taken.values() for route in routes}
    trained: dict[str, str] = {}
    for stage in variant.stages:
        # Without the manifest's word (an expert may serve several tasks) only an expert named like the task is its own.
        trained.update(stage.experts or {task: task for task in stage.tasks if stage.scored and task in seen})
    tasks = tuple(taken)
    own = tuple(trained.get(task) for task in tasks)
    experts = list(dict.fromkeys(expert for expert in own if expert is not None))
    experts += sorted(seen - {*experts, BASE})
    if BASE in seen and BASE not in experts:
        experts.append(BASE)
    right = [0 if expert is None else taken[task][expert] for task, expert in zip(tasks, own, strict=True)]
    asked = [0 if expert is None else taken[task].total() for task, expert in zip(tasks, own, strict=True)]
    return Routing(
        stage=last.label,
        tasks=tasks,
        experts=tuple(experts),
        counts=tuple(tuple(taken[task][expert] for expert in experts) for task in tasks),
        own=own,
        per_task=tuple(hits / n if n else None for hits, n in zip(right, asked, strict=True)),
        accuracy=sum(right) / sum(asked) if sum(asked) else None,
    )
