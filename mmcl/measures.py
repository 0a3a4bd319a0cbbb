"""What a run measures beside the matrix: probes of general ability, losses on corpora, edits, knowledge that changes.

Each is a file in the variant's folder; what it is made of lies in the stages' folders, so that a run that was broken
off measures nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcl.cells import Cells
from mmcl.data.types import Task
from mmcl.evaluation.ability import DELTA, FUAR, x_delta
from mmcl.evaluation.corpus import DEFINITION as LOSS
from mmcl.evaluation.corpus import corpus_loss, corpus_samples
from mmcl.evaluation.edits import DEFINITIONS as EDITS
from mmcl.evaluation.edits import Scored, edit_scores
from mmcl.evaluation.knowledge import changing, knowledge_document, period
from mmcl.evaluation.predictions import read_predictions
from mmcl.files import read_json, write_json
from mmcl.progress import Progress
from mmcl.protocols import Objective
from mmcl.recipe import registry
from mmcl.recipe.spec import Recipe
from mmcl.session import Session
from mmcl.stages import CORPUS_KINDS, Stage, few, samples_hash
from mmcl.training.methods import Methods


class Measures:
    """The measurements of one run.

    Args:
        folder: of the run.
        accelerator: of `accelerate`; its main process writes.
        progress: shows what goes on.
    """

    def __init__(self, folder: Path, accelerator: Any, progress: Progress) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.progress = progress
        self.cells = Cells(folder, accelerator, progress, place="probes")
        self._probes: dict[str, list[Task]] = {}
        self._hashes: dict[int, tuple[Task, str]] = {}

    def remember(self, stages: Sequence[Stage]) -> None:
        """See `Cells.remember`."""
        self.cells.remember(stages)

    def after(
        self, stage: Stage, stages: Sequence[Stage], recipe: Recipe, session: Callable[[], Session], given: str
    ) -> None:
        """Measure what is missing after a stage.

        Args:
            stage: finished.
            stages: of the variant.
            recipe: of the variant.
            session: gives a session at the stage; asked only if something is missing.
            given: see `Cells.measure`.
        """
        if stage.index >= _baseline(stages).index:
            probes = self.probes(recipe)
            missing = [task for task in probes if self.cells.score(stage, task, recipe) is None]
            if missing:
                at = session()
                self.cells.measure(stage, missing, recipe, at, _methods(at, stage), given)
        if recipe.evaluate.corpus_loss:
            self._losses(stage, stages, recipe, session)

    def write(self, home: Path, stages: Sequence[Stage], recipe: Recipe, done: Sequence[Stage]) -> None:
        """Write the files of a variant.

        Args:
            home: the variant's folder.
            stages: of the variant.
            recipe: of the variant.
            done: the stages that are finished, in order.
        """
        if not self.accelerator.is_main_process:
            return
        documents = {
            "probes.json": self._probe_document(stages, recipe, done),
            "losses.json": self._loss_document(stages, done),
            "edits.json": self._edit_document(stages, done),
            "knowledge.json": self._knowledge_document(stages, done),
        }
        for name, content in documents.items():
            if content is not None:
                home.mkdir(parents=True, exist_ok=True)
                write_json(home / name, content)

    # ------------------------------------------------------------------------------------------------------- probes

    def probes(self, recipe: Recipe) -> list[Task]:
        """The probes' tasks that have test questions."""
        key = json.dumps(recipe.to_dict()["probes"], sort_keys=True, default=str) + str(recipe.seed)
        if key not in self._probes:
            streams = [registry.build("streams", spec, recipe.folder, seed=recipe.seed) for spec in recipe.probes]
            self._probes[key] = [task for stream in streams for task in stream.tasks() if task.test]
        return self._probes[key]

    def _probe_document(self, stages: Sequence[Stage], recipe: Recipe, done: Sequence[Stage]) -> dict[str, Any] | None:
        probes = self.probes(recipe)
        if not probes:
            return None
        rows = [stage for stage in done if stage.index >= _baseline(stages).index]
        if not rows:
            return None
        values = [[_known(self.cells.score(stage, task, recipe)) for task in probes] for stage in rows]
        return {
            "probes": [task.name for task in probes],
            "metrics": [task.metric for task in probes],
            "stages": [stage.label for stage in rows],
            "scores": values,
            "delta": [x_delta(row, values[0]) for row in values],
            "definition": f"{DELTA}; R_0 is {rows[0].label}",
        }

    # ------------------------------------------------------------------------------------------------ losses on corpora

    def _losses(self, stage: Stage, stages: Sequence[Stage], recipe: Recipe, session: Callable[[], Session]) -> None:
        """The loss on each corpus trained so far, and on the next one before it is trained."""
        path = self._loss_path(stage)
        known: dict[str, Any] = read_json(path) if path.exists() else {}
        found: dict[str, Any] = {}
        for corpus in _corpora(stages)[: sum(each.index <= stage.index + 1 for each in _corpora(stages))]:
            assert corpus.task is not None
            samples, heldout = corpus_samples(corpus.task)
            chosen = few(samples, recipe.evaluate.corpus_loss)
            key = hashlib.sha256(f"{stage.hash} {self._hash(corpus.task)} {len(chosen)}".encode()).hexdigest()
            entry = known.get(corpus.label)
            if entry is None or entry["key"] != key:
                at = session()
                objective: Objective = registry.build("objectives", corpus.objective, recipe.folder)
                loss = corpus_loss(at.model, _methods(at, stage), chosen, objective)
                entry = {"key": key, "loss": loss, "samples": len(chosen), "heldout": heldout}
            found[corpus.label] = entry
        if found and found != known and self.accelerator.is_main_process:
            write_json(path, found)

    def _loss_path(self, stage: Stage) -> Path:
        return self.folder / stage.folder / "losses.json"

    def _hash(self, task: Task) -> str:
        if id(task) not in self._hashes:
            self._hashes[id(task)] = task, samples_hash(corpus_samples(task)[0])
        return self._hashes[id(task)][1]

    def _loss_document(self, stages: Sequence[Stage], done: Sequence[Stage]) -> dict[str, Any] | None:
        entries = {stage.label: read_json(path) for stage in done if (path := self._loss_path(stage)).exists()}
        corpora = [stage.label for stage in _corpora(stages) if any(stage.label in row for row in entries.values())]
        if not corpora:
            return None
        first = {label: next(row[label] for row in entries.values() if label in row) for label in corpora}
        return {
            "corpora": corpora,
            "heldout": [first[label]["heldout"] for label in corpora],
            "samples": [first[label]["samples"] for label in corpora],
            "stages": list(entries),
            "loss": [[row[label]["loss"] if label in row else None for label in corpora] for row in entries.values()],
            "definition": LOSS,
        }

    # --------------------------------------------------------------------------------------------- edits and knowledge

    def _edit_document(self, stages: Sequence[Stage], done: Sequence[Stage]) -> dict[str, Any] | None:
        edits = [stage for stage in done if stage.kind == "refine" and stage.columns]
        rows = []
        for place, stage in enumerate(edits):
            parent = stages[stage.index - 1]
            before = [row for column in stage.columns for row in self._answers(parent, column)]
            after = [row for column in stage.columns for row in self._answers(stage, column)]
            earlier = [self._answers(stage, column) for each in edits[:place] for column in each.columns]
            rows.append({"stage": stage.label, **edit_scores(before, after, earlier).to_dict()})
        return {"edits": rows, "definitions": dict(EDITS)} if rows else None

    def _knowledge_document(self, stages: Sequence[Stage], done: Sequence[Stage]) -> dict[str, Any] | None:
        taught = [(stage, column) for stage in done for column in stage.columns]
        columns = [column for _, column in taught]
        if not changing(columns):
            return None
        periods = []
        for place, (stage, _) in enumerate(taught):
            if place:
                before, after = (
                    {each.name: _by_id(self._answers(at, each)) for each in columns[: place + 1]}
                    for at in (stages[stage.index - 1], stage)
                )
                periods.append(period(columns, place, before, after))
        return {**knowledge_document(periods), "definition": FUAR}

    def _answers(self, stage: Stage, task: Task) -> list[Scored]:
        """Answers and scores of a cell of the matrix; none where it was not measured."""
        path = self.folder / stage.folder / "predictions" / f"{task.name}.jsonl"
        return [(row, score or 0.0) for row, score in read_predictions(path)] if path.exists() else []


def _by_id(rows: Sequence[Scored]) -> Mapping[str, float]:
    return {row.id: score for row, score in rows}


def _known(score: float | None) -> float:
    assert score is not None
    return score


def _methods(session: Session, stage: Stage) -> Methods:
    return session.active(stage) if stage.task is not None else Methods({})


def _corpora(stages: Sequence[Stage]) -> list[Stage]:
    return [stage for stage in stages if stage.task is not None and stage.kind in CORPUS_KINDS]


def _baseline(stages: Sequence[Stage]) -> Stage:
    """What general ability is compared with: the model after its alignment, which a fresh projector needs to see."""
    first = next((stage.index for stage in stages if stage.task is not None and stage.kind != "align"), len(stages))
    return stages[first - 1]
