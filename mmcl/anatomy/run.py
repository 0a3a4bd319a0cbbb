"""Take a finished run apart: of each task that lost score, what the loss is made of."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mmcl import __version__
from mmcl.anatomy import relearn
from mmcl.anatomy.evidence import Asked, Asker, Evidence, gather, look
from mmcl.anatomy.states import drift
from mmcl.data.types import Sample, Task
from mmcl.errors import UserError
from mmcl.evaluation import confusion
from mmcl.evaluation import drift as drifts
from mmcl.evaluation.anatomy import PARTS, REST, split
from mmcl.evaluation.choices import Choices, choices_of
from mmcl.evaluation.confusion import AnswerSets
from mmcl.evaluation.predictions import read_predictions
from mmcl.experiment import Experiment
from mmcl.files import read_json, write_json
from mmcl.gallery import write_images
from mmcl.progress import Progress
from mmcl.protocols import Prediction
from mmcl.recipe import registry
from mmcl.recipe.spec import PluginSpec
from mmcl.recipe.suggest import did_you_mean
from mmcl.revisit import open_run
from mmcl.session import Session
from mmcl.stages import Stage, asked, few, rows_of
from mmcl.training import checkpoint

FILE = "anatomy.json"
EXAMPLES = 6
"""Questions shown of each part of a loss."""

IMAGES = (
    "Score of the questions that have images, over the same routes, with their own images, with grey ones of the same "
    "size (blank), with images of other tasks (foreign; of the same task where there is no other), and with their own "
    "visual tokens in a random order (disordered). A task whose score hardly falls with these was not answered from "
    "its images."
)
TRANSPLANTS = (
    "Score of the later model with one part as it was at the stage that learned the task, over each question's own "
    "route. Parts that learned to fit each other may bring nothing back alone."
)


@dataclass(frozen=True, slots=True)
class Options:
    """How closely to look.

    Attributes:
        sample: at most so many questions of each task, chosen by a hash of their ids.
        relearn: so many training samples of each task are learned again; 0 for none.
        steps: for so many optimiser steps.
    """

    sample: int = 200
    relearn: int = 32
    steps: int = 16


def anatomy(
    folder: Path,
    *,
    variant: str | None = None,
    stage: str = "last",
    tasks: Sequence[str] = (),
    options: Options | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Take a run's losses apart and write `anatomy.json` into the folder of each variant.

    What an earlier call found in the same way is kept.

    Args:
        folder: of the run.
        variant: only this one, with all its seeds and orders, or one of these runs.
        stage: at which the losses are looked at: a finished stage's name or label, or `last`.
        tasks: only these; default: all that were learned before.
        options: how closely to look.
        progress: shows what goes on.

    Returns:
        The documents by variant.

    Raises:
        UserError: there is no such variant, stage or task, or nothing was measured there.
    """
    run = open_run(folder, progress)
    names = run.recipe.variant_names if variant is None else run.recipe.runs_of(variant)
    return {name: _Subject(run, name, stage, tasks, options or Options()).document() for name in names}


class _Subject:
    """One variant at one stage."""

    def __init__(self, run: Experiment, variant: str, stage: str, tasks: Sequence[str], options: Options) -> None:
        self.run, self.variant, self.options = run, variant, options
        self.recipe, _, self.stages = run.stages(variant)
        run.cells.remember(self.stages)
        self.later = run.find(self.stages, stage)
        seen = rows_of(self.stages[: self.later.index + 1])
        self.learned = {column.name: each for each in reversed(seen) for column in each.columns}
        self.columns = [column for each in seen for column in each.columns]
        unknown = [name for name in tasks if name not in self.learned]
        if unknown:
            hint = did_you_mean(unknown[0], list(self.learned)) or f"learned are {', '.join(self.learned)}"
            raise UserError(f"no task `{unknown[0]}` was learned up to {self.later.label}", where="--task", hint=hint)
        self.tasks = [column for column in self.columns if not tasks or column.name in tasks]
        self.path = run.home(variant) / FILE
        self.sets = AnswerSets(self.columns)

    def document(self) -> dict[str, Any]:
        """Examine the tasks and write the file, after each of them; what it has of other tasks stays."""
        old = read_json(self.path) if self.path.exists() else {}
        known = {entry["key"]: entry for entry in old.get("tasks", [])}
        before = [task for task in self.columns if self.learned[task.name].index < self.later.index]
        if not any(task in self.tasks for task in before):
            hint = "name a later stage, or train more tasks"
            raise UserError(f"nothing was learned before {self.later.label}", where=self.variant, hint=hint)
        content: dict[str, Any] = {}
        done: dict[str, Any] = {}
        for task in before:
            key = self._key(self.learned[task.name], task)
            if key in known:
                done[task.name] = known[key]
        for task in [task for task in before if task in self.tasks]:
            learned = self.learned[task.name]
            if task.name not in done:
                done[task.name] = {"key": self._key(learned, task), **self._task(learned, task)}
            content = self._content([done[each.name] for each in before if each.name in done])
            if self.run.main:
                write_json(self.path, content)
        return content

    def _content(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        given = {column.name: [row.text for row, _ in self._rows(self.later, column)] for column in self.columns}
        return {
            "stage": self.later.label,
            "options": asdict(self.options),
            "tasks": list(tasks),
            "confusion": {
                "tasks": self.sets.names,
                "columns": [*self.sets.names, confusion.NONE],
                "counts": confusion.confusion(self.sets, given),
            },
            "definitions": {
                **PARTS,
                "rest": REST,
                "images": IMAGES,
                "drift": drifts.DEFINITION,
                "transplants": TRANSPLANTS,
                "relearning": relearn.DEFINITION,
                "confusion": confusion.DEFINITION,
            },
        }

    def _key(self, learned: Stage, task: Task) -> str:
        cells = [self.run.cells.path(stage, task) for stage in (learned, self.later)]
        about = [read_json(path)["hash"] if path.exists() else None for path in cells]
        content = [learned.hash, self.later.hash, task.name, about, asdict(self.options), __version__]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _rows(self, stage: Stage, task: Task) -> list[tuple[Prediction, float]]:
        """Scored answers of a cell.

        Raises:
            UserError: it was not measured, or on other questions.
        """
        if self.run.cells.score(stage, task, self.recipe) is None:
            raise UserError(
                f"task {task.name} has no answers after {stage.label}",
                where=str(self.run.folder),
                hint="run the recipe again (`mmcl run`): it measures what is missing",
            )
        path = self.run.cells.path(stage, task).with_suffix(".jsonl")
        return [(row, score or 0.0) for row, score in read_predictions(path)]

    # -------------------------------------------------------------------------------------------------- one task

    def _task(self, learned: Stage, task: Task) -> dict[str, Any]:
        before = {row.id: (row, score) for row, score in self._rows(learned, task)}
        after = {row.id: (row, score) for row, score in self._rows(self.later, task)}
        every = [s for s in asked(task, self.recipe.evaluate) if s.id in before and s.id in after]
        samples = few(every, self.options.sample)
        found = Asked(
            task=task,
            samples=samples,
            before=[before[s.id][1] for s in samples],
            after=[after[s.id][1] for s in samples],
            texts=[after[s.id][0].text for s in samples],
        )
        asker = self._asker(task)
        was, now = ([rows[s.id][0].text for s in samples] for rows in (before, after))
        entry: dict[str, Any] = {
            "task": task.name,
            "learned": learned.label,
            "questions": len(every),
            "sampled": len(samples),
            "lost": len(found.lost),
            "before": asker.corpus(samples, was),
            "after": asker.corpus(samples, now),
            "gained": sum(max(0.0, b - a) for a, b in zip(found.before, found.after, strict=True)) / len(samples),
        }
        if not found.lost:
            return {**entry, "loss": 0.0, "parts": dict.fromkeys(PARTS, 0.0), "rest": 0.0, "examples": []}
        return {**entry, **self._loss(learned, found, asker, was)}

    def _loss(self, learned: Stage, found: Asked, asker: Asker, was: Sequence[str]) -> dict[str, Any]:
        task, samples = found.task, found.samples
        tests = [sample for column in self.columns if column is not task for sample in column.test]
        others = [sample for sample in tests if sample.images] or list(task.test)
        session = self._at(learned)
        methods = session.active(learned)
        then = look(session.model, asker, samples, methods.select(session.model, samples), was, others)
        tensors = self._tensors(session)
        del session  # before the next one takes as much memory
        fresh, patterns = self._from_parent(learned, found, asker)
        session = self._at(self.later)
        methods = session.active(self.later)
        routes = methods.select(session.model, samples)
        now = look(session.model, asker, samples, routes, found.texts, others)
        state = session.model.state()
        learned_tensors = {name: value for name, value in tensors.items() if not value.equal(state[name].cpu())}
        evidence = gather(
            session.model,
            methods,
            asker,
            found,
            taken=routes,
            learned=learned_tensors,
            look=now,
            choices=self._choices(task),
            sets=self.sets,
        )
        parts = split(evidence.lost)
        count = len(samples)
        return {
            "loss": parts.loss / count,
            "parts": {part: value / count for part, value in parts.parts.items()},
            "rest": parts.rest / count,
            "images": {"before": dict(then.images), "after": dict(now.images)} if now.images else None,
            "drift": {
                "images": drift(then.image_states, now.image_states),
                "texts": drift(then.text_states, now.text_states),
            },
            "transplants": evidence.transplants,
            "relearning": self._again(session, learned, found, asker, fresh, patterns),
            "examples": self._examples(found, was, evidence, parts.largest),
        }

    def _at(self, stage: Stage) -> Session:
        """A session whose model is only asked."""
        session = self.run.at(stage, self.stages, self.recipe)
        session.model.set_trainable(())
        return session

    def _tensors(self, session: Session) -> dict[str, Tensor]:
        """What the later stage's checkpoint holds, as it is in this model; without what is not there yet."""
        names = checkpoint.tensor_names(self.run.folder / self.later.folder / "trainable.safetensors")
        own = {**dict(session.model.named_parameters()), **dict(session.model.named_buffers())}
        return {name: own[name].detach().cpu().clone() for name in names if name in own}

    def _asker(self, task: Task) -> Asker:
        spec = self.recipe.evaluate
        return Asker(
            metric=registry.build("metrics", PluginSpec(task.metric, task.metric_options), self.recipe.folder),
            lenient=registry.build("metrics", PluginSpec("contains"), self.recipe.folder),
            spec=spec,
            choices=self._ranked(task) if spec.answers == "likelihood" else None,
            progress=self.run.progress,
            label=f"anatomy of {task.name}",
        )

    def _ranked(self, task: Task) -> Choices:
        """The choices of a run that ranks answers."""
        return choices_of(task, self.columns if self.recipe.evaluate.choices == "seen" else ())

    def _choices(self, task: Task) -> Choices | None:
        """The task's answers to rank; None where they are no closed set, or where the run ranked these anyway."""
        spec = self.recipe.evaluate
        if spec.answers == "likelihood" and spec.choices == "task":
            return None
        try:
            return choices_of(task)
        except UserError:
            return None

    # ------------------------------------------------------------------------------------------------- relearning

    def _from_parent(self, learned: Stage, found: Asked, asker: Asker) -> tuple[list[tuple[int, float]], list[str]]:
        """The curve of learning a few samples from the parent, and patterns of the parameters that train."""
        if not self.options.relearn:
            return [], []
        task = self._few(found.task)
        session = self.run.at(self.stages[learned.index - 1], self.stages, self.recipe)
        tasks = {stage.task.name: stage.task for stage in self.stages if stage.task}
        methods = relearn.begin(session, learned, task, tasks)
        patterns = relearn.patterns(list(session.model.trainable()))
        return self._curve(session, methods, learned, found, asker, "parent"), patterns

    def _again(
        self,
        session: Session,
        learned: Stage,
        found: Asked,
        asker: Asker,
        fresh: Sequence[tuple[int, float]],
        patterns: Sequence[str],
    ) -> dict[str, Any] | None:
        """Both curves; None where nothing is to be learned. Changes the session's model."""
        names = [name for name, _ in session.model.named_parameters()]
        patterns = [each for each in patterns if any(name.startswith(f"{each}.") for name in names)]
        if not fresh or not patterns:
            return None
        session.model.recipe_train = learned.trainable
        session.model.set_trainable(patterns)
        curve = self._curve(session, session.active(self.later), learned, found, asker, "again")
        return {
            "samples": min(self.options.relearn, len(found.task.train)),
            "steps": [step for step, _ in fresh],
            "parent": [score for _, score in fresh],
            "forgotten": [score for _, score in curve],
        }

    def _curve(
        self, session: Session, methods: Any, learned: Stage, found: Asked, asker: Asker, what: str
    ) -> list[tuple[int, float]]:
        label = f"anatomy of {found.task.name}, {what}"
        task = self._few(found.task)
        return relearn.relearn(session, methods, learned, task, found.samples, asker.metric, self.options.steps, label)

    def _few(self, task: Task) -> Task:
        return replace(task, train=few(task.train, self.options.relearn))

    # --------------------------------------------------------------------------------------------------- examples

    def _examples(
        self, found: Asked, was: Sequence[str], evidence: Evidence, largest: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Some lost questions of each part, such as differ in what was answered."""
        shown = []
        for part in [*PARTS, "rest"]:
            places = [at for at, each in enumerate(largest) if each == part]
            traits = [_traits(found.samples[found.lost[at]], found.texts[found.lost[at]]) for at in places]
            for at in _diverse(traits, EXAMPLES):
                place = places[at]
                k = found.lost[place]
                shown.append(_example(found.samples[k], part, was[k], found.texts[k], evidence.repaired[place]))
                if self.run.main:
                    write_images(self.run.folder, found.samples[k])
        return shown


def _example(sample: Sample, part: str, was: str, now: str, repaired: Mapping[str, str]) -> dict[str, Any]:
    return {
        "part": part,
        "id": sample.id,
        "question": sample.question,
        "references": list(dict.fromkeys(sample.answers)),
        "images": [{"name": image.name, "digest": image.digest} for image in sample.images],
        "before": was,
        "after": now,
        "repaired": repaired.get(part),
    }


def _traits(sample: Sample, text: str) -> list[tuple[str, object]]:
    images = tuple(image.digest for image in sample.images)
    return [("answer", text), ("reference", sample.answers[:1]), ("images", images)]


def _diverse(traits: Sequence[Sequence[tuple[str, object]]], most: int) -> list[int]:
    """Places, chosen one after another: the next one has the traits that were chosen least so far."""
    left, chosen = list(range(len(traits))), list[int]()
    seen: Counter[tuple[str, object]] = Counter()
    while left and len(chosen) < most:
        best = min(left, key=lambda k: (*(seen[trait] for trait in traits[k]), k))
        left.remove(best)
        chosen.append(best)
        seen.update(traits[best])
    return chosen
