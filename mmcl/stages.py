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
from mmcl.data.setting import arrange, together
from mmcl.data.types import Sample, StageKind, Task
from mmcl.errors import Problem, UserError
from mmcl.recipe import registry
from mmcl.recipe.spec import EvaluateSpec, PluginSpec, Recipe, SelectSpec, StageSpec, TrainSpec
from mmcl.recipe.suggest import did_you_mean

OBJECTIVES: Mapping[StageKind, str] = {
    "align": "answers",
    "pretrain": "all_text",
    "domain": "all_text",
    "instruct": "answers",
    "refine": "answers",
    "prefer": "dpo",
}
"""The objective that each stage kind trains."""

CORPUS_KINDS: frozenset[StageKind] = frozenset({"align", "pretrain", "domain"})
"""Kinds whose tasks are corpora, on which a loss is measured rather than questions asked."""

NAME = re.compile(r"[^\W_][\w -]*", re.UNICODE)  # no `+`: it joins the names of tasks that train together


@dataclass(frozen=True, slots=True)
class Stage:
    """One task trained in one way, after a parent.

    Attributes:
        index: place in the run, from 0.
        task: what is trained; None for the start, which only holds the model before anything was trained.
        columns: the tasks whose questions the stage teaches to answer: the task itself, or those that train together.
        kind: place on the vertical axis.
        objective: what is trained.
        select: which samples are trained on; None for all.
        methods: in order.
        train: the recipe's settings with the stage's overrides.
        trainable: parts that train.
        overrides: what the stage set itself.
        hash: of all that the result depends on.
        parent: hash of the stage before; empty for the first.
    """

    index: int
    task: Task | None
    columns: tuple[Task, ...]
    kind: StageKind
    objective: PluginSpec
    select: SelectSpec | None
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
    def tasks(self) -> list[str]:
        """Names of what it trains: the columns, or the task where it has none."""
        return [column.name for column in self.columns] or [self.name]


def stream_tasks(recipe: Recipe) -> list[Task]:
    """The tasks of the recipe's stream, in the recipe's setting.

    Raises:
        UserError: the stream can't be built, or its tasks don't fit the setting.
    """
    setting = recipe.setting
    tasks = registry.build("streams", recipe.stream, recipe.folder, seed=recipe.seed).tasks()
    return arrange(
        tasks,
        order=setting.order,
        cycles=setting.cycles,
        boundaries=setting.boundaries,
        leak=setting.leak,
        seed=recipe.seed,
    )


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
    start = PluginSpec(OBJECTIVES["align"])
    stages = [Stage(0, None, (), "align", start, None, (), recipe.train, (), {}, parent, "")]
    for spec in recipe.stages:
        chosen = stage_tasks(spec, tasks, by_name)
        for group in [chosen] if spec.together else [[task] for task in chosen]:
            methods = recipe.methods if spec.methods is None else spec.methods
            train = replace(recipe.train, **spec.train)
            if train.max_samples is not None:  # here, so that memory, prototypes and joint training see no more either
                group = [replace(task, train=few(task.train, train.max_samples)) for task in group]
            task, columns = together(group)
            trainable = spec.trainable or recipe.model.train
            objective = spec.objective or PluginSpec(OBJECTIVES[spec.kind])
            content = {
                "parent": parent,
                "kind": spec.kind,
                "task": _task_hash(task),
                "objective": {"name": objective.name, **objective.options},
                "select": asdict(spec.select) if spec.select else None,
                "methods": [{"name": method.name, **method.options} for method in methods],
                "code": code_of("methods", methods, recipe.folder) | code_of("objectives", [objective], recipe.folder),
                "train": asdict(train),
                "trainable": list(trainable),
            }
            key = _hash(content)
            stages.append(
                Stage(
                    index=len(stages),
                    task=task,
                    columns=columns,
                    kind=spec.kind,
                    objective=objective,
                    select=spec.select,
                    methods=methods,
                    train=train,
                    trainable=trainable,
                    overrides=_overrides(spec),
                    hash=key,
                    parent=parent,
                )
            )
            parent = key
    return stages


def _overrides(spec: StageSpec) -> dict[str, Any]:
    """What the stage sets itself, for the manifest; empty where it sets nothing."""
    own: dict[str, Any] = {"train": dict(spec.train), "trainable": spec.trainable}
    if spec.objective is not None:
        own["objective"] = {"name": spec.objective.name, **spec.objective.options}
    if spec.select is not None:
        own["select"] = asdict(spec.select)
    return own if len(own) > 2 or any(own.values()) else {}


def rows_of(stages: Sequence[Stage]) -> list[Stage]:
    """The stages after which questions are asked, the rows of the matrix: from the first that teaches any, on."""
    first = next((stage.index for stage in stages if stage.columns), len(stages))
    return [stage for stage in stages if stage.index >= first]


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
    trained = bool(recipe.model.vlm)
    for index, spec in enumerate(recipe.stages):
        where = f"stages.{index}"
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
        if spec.kind in ("refine", "prefer") and not trained:
            problems.append(
                Problem(
                    f"{where}.kind",
                    f"`{spec.kind}` comes before anything was trained, and the projector starts at random",
                    "let a stage `{kind: align}` or `{kind: instruct}` come first, or start from a ready model (`vlm`)",
                )
            )
        if spec.kind == "prefer" and spec.objective is None:
            problems += [problem for name in chosen if name in names for problem in _unpaired(tasks[names.index(name)])]
        trained = True
    problems += _without_boundaries(recipe)
    if problems:
        raise UserError(problems=list(dict.fromkeys(problems)))


def _unpaired(task: Task) -> list[Problem]:
    """Samples that are no preference pairs."""
    alone = [sample.id for sample in task.train if not sample.rejected]
    if not alone:
        return []
    message = f"{len(alone)} of {len(task.train)} samples have no rejected answer, the first is {alone[0]!r}"
    return [Problem(f"task {task.name}, train", message, "a preference pair has `chosen` and `rejected` answers")]


def _without_boundaries(recipe: Recipe) -> list[Problem]:
    """Methods that can't work where the setting has no clear boundaries."""
    if recipe.setting.boundaries == "clear":
        return []
    lists = {"methods": recipe.methods} | {
        f"stages.{index}.methods": spec.methods for index, spec in enumerate(recipe.stages) if spec.methods is not None
    }
    return [
        Problem(
            f"{where}.{place}",
            f"`{spec.name}` needs boundaries between tasks, and `setting.boundaries` is `{recipe.setting.boundaries}`",
            "choose a method that does without, such as `replay` without distillation, or `boundaries: clear`",
        )
        for where, specs in lists.items()
        for place, spec in enumerate(specs)
        if registry.build("methods", spec, recipe.folder, seed=recipe.seed).needs_boundaries
    ]


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
            *([sample.rejected] if sample.rejected else []),
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
