"""From a recipe and a stream to the stages of a run, each known by a hash of all that its result depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmcl import __version__
from mmcl.data.types import Sample, StageKind, Task
from mmcl.errors import Problem, UserError
from mmcl.recipe import registry
from mmcl.recipe.spec import EvaluateSpec, PluginSpec, Recipe, StageSpec, TrainSpec
from mmcl.recipe.suggest import did_you_mean

OBJECTIVES: Mapping[str, str] = {
    "align": "answers",
    "instruct": "answers",
    "pretrain": "all_text",
    "domain": "all_text",
}
"""The objective that each stage kind trains."""

NAME = re.compile(r"[^\W_][\w -]*", re.UNICODE)


@dataclass(frozen=True, slots=True)
class Stage:
    """One task trained in one way, after a parent.

    Attributes:
        index: place in the run, from 0.
        task: what is trained; None for the start, which only holds the model before anything was trained.
        kind: place on the vertical axis.
        methods: in order.
        train: the recipe's settings with the stage's overrides.
        trainable: parts that train.
        overrides: what the stage set itself.
        hash: of all that the result depends on.
        parent: hash of the stage before; empty for the first.
    """

    index: int
    task: Task | None
    kind: StageKind
    methods: tuple[PluginSpec, ...]
    train: TrainSpec
    trainable: tuple[str, ...]
    overrides: Mapping[str, Any]
    hash: str
    parent: str

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name if self.task else "start"

    @property
    def label(self) -> str:
        """Number and name, such as `01-shape`."""
        return f"{self.index:02d}-{self.name}"

    @property
    def folder(self) -> str:
        """Relative to the run's folder."""
        return f"stages/{self.label}-{self.hash[:8]}"

    @property
    def scored(self) -> bool:
        """Whether the stage is a row of the matrix: its task has test questions."""
        return bool(self.task and self.task.test)


def plan(recipe: Recipe, tasks: Sequence[Task], encoder_fingerprint: str = "") -> list[Stage]:
    """The stages of one variant, in order, the start first.

    Args:
        recipe: of one variant.
        tasks: of the stream.
        encoder_fingerprint: of an encoder given as an object, which the recipe cannot describe.

    Raises:
        UserError: stages name tasks that the stream does not have, and other mistakes, all at once.
    """
    check_tasks(recipe, tasks)
    by_name = {task.name: task for task in tasks}
    base = {
        "mmcl": __version__,
        "seed": recipe.seed,
        "model": _plain_model(recipe),
        "encoder": encoder_fingerprint,
        "code": code_of("encoders", _given(recipe.model.encoder), recipe.folder)
        | code_of("projectors", _given(recipe.model.projector), recipe.folder),
    }
    parent = _hash(base)
    stages = [Stage(0, None, "align", (), recipe.train, (), {}, parent, "")]
    for spec in recipe.stages:
        for task in stage_tasks(spec, tasks, by_name):
            methods = recipe.methods if spec.methods is None else spec.methods
            train = replace(recipe.train, **spec.train)
            if train.max_samples is not None:  # here, so that memory, prototypes and joint training see no more either
                task = replace(task, train=few(task.train, train.max_samples))
            trainable = spec.trainable or recipe.model.train
            content = {
                "parent": parent,
                "kind": spec.kind,
                "task": _task_hash(task),
                "methods": [{"name": method.name, **method.options} for method in methods],
                "code": code_of("methods", methods, recipe.folder),
                "train": asdict(train),
                "trainable": list(trainable),
            }
            key = _hash(content)
            overrides = {"train": dict(spec.train), "trainable": spec.trainable} if spec.train or spec.trainable else {}
            stages.append(Stage(len(stages), task, spec.kind, methods, train, trainable, overrides, key, parent))
            parent = key
    return stages


def _given(spec: PluginSpec | None) -> list[PluginSpec]:
    return [] if spec is None else [spec]


def stage_tasks(spec: StageSpec, tasks: Sequence[Task], by_name: Mapping[str, Task]) -> list[Task]:
    """The tasks of one entry of `stages`."""
    if spec.tasks is not None:
        return [by_name[name] for name in spec.tasks]
    return [task for task in tasks if task.kind == spec.kind]


def check_tasks(recipe: Recipe, tasks: Sequence[Task]) -> None:
    """Names of tasks and stages.

    Raises:
        UserError: with all mistakes.
    """
    problems = []
    names = [task.name for task in tasks]
    for name in names:
        if not NAME.fullmatch(name):
            problems.append(
                Problem(
                    f"stream, task {name!r}",
                    "not a name for a column and a file",
                    "start with a letter or digit; use letters, digits, spaces, - and _",
                )
            )
        if names.count(name) > 1:
            problems.append(Problem(f"stream, task {name!r}", "two tasks of that name", "rename one"))
    used: set[str] = set()
    for index, spec in enumerate(recipe.stages):
        where = f"stages.{index}"
        if spec.kind not in OBJECTIVES:
            problems.append(
                Problem(f"{where}.kind", f"`{spec.kind}` has no objective", f"kinds are {', '.join(OBJECTIVES)}")
            )
        for name in spec.tasks or ():
            if name not in names:
                problems.append(
                    Problem(f"{where}.tasks", f"the stream has no task `{name}`", did_you_mean(name, names))
                )
        of_kind = [task.name for task in tasks if task.kind == spec.kind]
        chosen = list(spec.tasks) if spec.tasks is not None else of_kind
        if not chosen:
            problems.append(
                Problem(where, f"the stream has no task of the kind `{spec.kind}`", f"name `tasks`: {', '.join(names)}")
            )
        for name in chosen:
            if name in used:
                problems.append(Problem(where, f"task `{name}` is in two stages", "name `tasks` in both"))
            used.add(name)
    if problems:
        raise UserError(problems=list(dict.fromkeys(problems)))


def asked(task: Task, spec: EvaluateSpec) -> list[Sample]:
    """The test questions that are asked: all, or `spec.sample` of them."""
    return list(task.test) if spec.sample is None else few(task.test, spec.sample)


def few(samples: Sequence[Sample], count: int) -> list[Sample]:
    """A subset: the first `count` by a hash of the id, in their own order; the same on every machine."""
    ranked = sorted(samples, key=lambda sample: hashlib.sha256(f"{sample.task}/{sample.id}".encode()).digest())
    chosen = {id(sample) for sample in ranked[:count]}
    return [sample for sample in samples if id(sample) in chosen]


def _task_hash(task: Task) -> str:
    """Of the training data; the test data are hashed with each prediction file."""
    return _hash({"name": task.name, "train": samples_hash(task.train)})


def samples_hash(samples: Sequence[Sample]) -> str:
    """Of texts, references and image contents."""
    digest = hashlib.sha256()
    for sample in samples:
        row = [
            sample.id,
            sample.group,
            [[turn.role, turn.text] for turn in sample.turns],
            [image.digest for image in sample.images],
            list(sample.answers),
        ]
        digest.update(json.dumps(row, ensure_ascii=False).encode())
    return digest.hexdigest()


def _plain_model(recipe: Recipe) -> Any:
    model = recipe.to_dict()["model"]
    model.pop("train")  # each stage has its own
    dtype = model.pop("features")["dtype"]  # where they lie and how much of them changes no result
    if dtype != "fp32":
        model["features"] = dtype
    return model


def code_of(kind: str, specs: Iterable[PluginSpec], folder: Path) -> dict[str, str]:
    """Contents of the user's own files among these plug-ins and theirs: an edited file is another experiment."""
    return {
        name: hashlib.sha256((folder / name.rpartition(":")[0]).read_bytes()).hexdigest()
        for spec in specs
        for _, name in registry.walk(kind, spec, folder)
        if ".py:" in name
    }


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
