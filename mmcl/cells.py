"""The cells of a run's matrix: where they lie, what they depend on, and how they are measured or taken over."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmcl import __version__
from mmcl.data.types import Sample, Task
from mmcl.evaluation import interval
from mmcl.evaluation.choices import Choices, choices_of
from mmcl.evaluation.evaluate import Cell, Earlier, evaluate_task
from mmcl.evaluation.predictions import write_predictions
from mmcl.evaluation.reuse import Answers, Weights
from mmcl.files import read_json, write_json
from mmcl.progress import Progress
from mmcl.protocols import Metric
from mmcl.recipe import registry
from mmcl.recipe.spec import EvaluateSpec, PluginSpec, Recipe
from mmcl.session import Session
from mmcl.stages import Stage, asked, code_of, samples_hash
from mmcl.training.methods import Methods


class Cells:
    """The cells of one run.

    Args:
        folder: of the run.
        accelerator: of `accelerate`; its main process writes.
        progress: shows what goes on.
        place: folder of a stage in which its cells lie.
    """

    def __init__(self, folder: Path, accelerator: Any, progress: Progress, place: str = "predictions") -> None:
        self.folder = folder
        self.place = place
        self.accelerator = accelerator
        self.progress = progress
        self._answers = Answers()
        # The questions of a task are chosen, hashed and looked through once. The task is kept so that its id stays its.
        self._questions: dict[tuple[int, int | None], tuple[Task, list[Sample], str]] = {}
        self._choices: dict[tuple[int, str], tuple[Task, Choices]] = {}
        self._seen: dict[str, list[Task]] = {}  # of each stage's hash, the tasks up to it
        self._metrics: dict[int, tuple[Task, Metric]] = {}  # finding a plug-in reads all installed packages' metadata

    def path(self, stage: Stage, task: Task) -> Path:
        """What is known of the cell; its answers lie beside it, with the suffix `.jsonl`."""
        return self.folder / stage.folder / self.place / f"{task.name}.json"

    def score(self, stage: Stage, task: Task, recipe: Recipe) -> float | None:
        """The cell's score, if it has been measured on these questions in this way."""
        path = self.path(stage, task)
        if not path.exists():
            return None
        about = read_json(path)
        return float(about["corpus"]) if about.get("hash") == self._hash(stage, task, recipe) else None

    def remember(self, stages: Sequence[Stage]) -> None:
        """Note what lies in the folders of a variant's stages, so that its answers need not be asked for again."""
        for stage in stages:
            self._seen[stage.hash] = [column for each in stages[: stage.index + 1] for column in each.columns]
        for folder in dict.fromkeys(stage.folder for stage in stages):
            for path in sorted((self.folder / folder / self.place).glob("*.json")):
                about = read_json(path)
                if about.get("shared") and about["reused"] < about["n"]:
                    self._answers.add_file(about["shared"], path.with_suffix(".jsonl"), Path(folder).name)

    def measure(
        self,
        stage: Stage,
        tasks: Sequence[Task],
        recipe: Recipe,
        session: Session,
        methods: Methods,
        given: str,
    ) -> list[dict[str, Any]]:
        """Measure cells of one stage, and write them.

        Args:
            stage: finished.
            tasks: to be asked.
            recipe: of the variant.
            session: at the stage.
            methods: that are active.
            given: stands for all that the answers depend on beside weights that train: recipe of the model and code.

        Returns:
            What is known of each cell.
        """
        started = time.perf_counter()
        earlier = None
        if recipe.evaluate.reuse:
            weights = Weights.of(session.model, given)
            earlier = Earlier(weights, self._answers.under(weights))
        ahead = time.perf_counter() - started  # is of all cells alike, and counted with the first
        measured = []
        for task in tasks:
            measured.append(self._measure(stage, task, recipe, session, methods, earlier, ahead))
            ahead = 0.0
        return measured

    def _measure(
        self,
        stage: Stage,
        task: Task,
        recipe: Recipe,
        session: Session,
        methods: Methods,
        earlier: Earlier | None,
        ahead: float,
    ) -> dict[str, Any]:
        metric = self._metric(task, recipe.folder)
        origin = Path(stage.folder).name
        choices = self._choices_of(stage, task, recipe.evaluate)
        cell = evaluate_task(
            session.model,
            methods,
            self._asked(task, recipe.evaluate)[0],
            metric,
            recipe.evaluate,
            accelerator=self.accelerator,
            progress=self.progress,
            label=f"{stage.label} on {task.name}",
            stage=origin,
            choices=choices,
            earlier=earlier,
        )
        places = Counter(str(row.metadata["measured_at"]) for row in cell.predictions)
        here = places.pop(origin, 0)
        about = {
            "task": task.name,
            "metric": task.metric,
            "mode": str(getattr(metric, "mode", "strict")),
            "definition": metric.definition,
            "follows": metric.follows,
            "corpus": cell.score.corpus,
            "n": len(cell.predictions),
            "seconds": ahead + cell.seconds,
            "reused": places.total(),
            "from": dict(sorted(places.items())),
            **sampling(cell, task),
            "answers": recipe.evaluate.answers,
            "choices": None if choices is None else {"count": len(choices.answers), "source": choices.source},
            "shared": earlier.weights.shared if earlier else "",
            "hash": self._hash(stage, task, recipe),
        }
        path = self.path(stage, task)
        if self.accelerator.is_main_process:
            write_predictions(path.with_suffix(".jsonl"), cell.predictions, cell.score.rows, model_id=stage.label)
            write_json(path, about)
        if earlier is not None and here:
            self._answers.add(cell.predictions, origin)
            self._answers.add_file(earlier.weights.shared, path.with_suffix(".jsonl"), origin)
        return about

    def _hash(self, stage: Stage, task: Task, recipe: Recipe) -> str:
        spec = recipe.evaluate
        choices = self._choices_of(stage, task, spec)
        content = [
            stage.hash,
            self._asked(task, spec)[1],
            task.metric,
            dict(task.metric_options),
            code_of("metrics", [PluginSpec(task.metric, task.metric_options)], recipe.folder),
            spec.max_new_tokens,
            None if choices is None else choices.answers,
            __version__,
        ]
        return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()

    def _asked(self, task: Task, spec: EvaluateSpec) -> tuple[list[Sample], str]:
        """The questions, and a hash of them."""
        key = (id(task.test), spec.sample)
        if key not in self._questions:
            questions = asked(task, spec)
            self._questions[key] = task, questions, samples_hash(questions)
        return self._questions[key][1:]

    def _metric(self, task: Task, folder: Path) -> Metric:
        if id(task) not in self._metrics:
            spec = PluginSpec(task.metric, task.metric_options)
            self._metrics[id(task)] = task, registry.build("metrics", spec, folder)
        return self._metrics[id(task)][1]

    def _choices_of(self, stage: Stage, task: Task, spec: EvaluateSpec) -> Choices | None:
        if spec.answers == "greedy":
            return None
        key = id(task), stage.hash if spec.choices == "seen" else ""
        if key not in self._choices:
            others = self._seen[stage.hash] if spec.choices == "seen" else []
            self._choices[key] = task, choices_of(task, others)
        return self._choices[key][1]


def sampling(cell: Cell, task: Task) -> dict[str, Any]:
    """How many questions the task has and, if only some were asked, a 95 % interval of the score and what it means."""
    about: dict[str, Any] = {"questions": len(task.test), "interval": None}
    if len(cell.predictions) < len(task.test):
        ends = cell.interval()
        about["interval"] = None if ends is None else list(ends)
        about["interval_definition"] = (
            interval.DEFINITION if ends else "No interval: the metric's value is not the mean of its rows."
        )
    return about
