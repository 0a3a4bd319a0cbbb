"""A run folder as objects.

An unfinished run is read as far as it got: a stage without its DONE marker is not there, nor is its matrix row.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcl.errors import UserError
from mmcl.report.anatomy import read_anatomy
from mmcl.report.beside import Beside, read_beside
from mmcl.report.cells import CellInfo, read_cells
from mmcl.report.certainty import Summary, read_summary
from mmcl.report.files import expect, need, read_lines, read_object, read_yaml, score, texts

Cell = float | None
Row = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of a predictions file."""

    id: str
    prompt: str
    text: str
    score: float
    references: tuple[str, ...]
    route: str
    group: str
    images: tuple[tuple[str, str], ...]
    """(name, digest) of each image; the digest is empty where the row has none."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the run; without `done` it has no cost and its results are not read."""

    label: str
    name: str
    kind: str
    folder: Path
    tasks: tuple[str, ...]
    scored: bool
    done: bool
    cost: Mapping[str, float]
    experts: Mapping[str, str]
    """The expert that each task was trained with, where the manifest says so."""

    cells: Mapping[str, CellInfo] = field(default_factory=dict)
    """What is known of each task's cell after this stage."""

    curve: Sequence[Mapping[str, Any]] = ()
    """Points of its learning curve, if that was measured."""

    def answers(self, task: str) -> list[Answer]:
        """Every question asked of the task after this stage; empty where none was."""
        cell = self.cells.get(task)
        return [_answer(row, where) for where, row in read_lines(cell.answers)] if cell else []


@dataclass(frozen=True, slots=True)
class MethodUse:
    """A method of a variant; `oracle` if it reads the task id at test time."""

    name: str
    options: Mapping[str, Any]
    oracle: bool


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant's results. `matrix[i][j]` is the score in [0, 1] on `tasks[j]` after `stages[i]`.

    Attributes:
        name: `default` in a run without variants.
        group: what several seeds and orders repeat; the name where nothing is repeated.
        tasks: columns of the matrix.
        rows: labels of the matrix rows.
        row_stages: the finished stage of each row.
        matrix: scores, None where not measured.
        row0: scores before the first task.
        row0_cells: what is known of these.
        stages: all finished stages in order, also those without a row.
        planned: how many stages the run will have.
        metrics: continual-learning metrics; None where undefined, with the reason in `undefined`.
        intervals: of the metrics, as in `metrics.json`; empty until the run is finished.
        definitions: of the metrics.
        warnings: what a reader of the metrics has to know.
        methods: in the order in which they compose.
        beside: what was measured beside the matrix.
        anatomy: what the losses are made of, as in `anatomy.json`; None until `mmcl anatomy` has been run.
    """

    name: str
    tasks: tuple[str, ...]
    rows: tuple[str, ...] = ()
    row_stages: tuple[Stage, ...] = ()
    matrix: tuple[Row, ...] = ()
    row0: Row | None = None
    row0_cells: Mapping[str, CellInfo] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    planned: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    intervals: Mapping[str, Any] = field(default_factory=dict)
    definitions: Mapping[str, str] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    methods: tuple[MethodUse, ...] = ()
    beside: Beside = field(default_factory=Beside)
    anatomy: Mapping[str, Any] | None = None
    group: str = ""

    @property
    def oracle(self) -> tuple[str, ...]:
        """Names of the methods that read the task id at test time."""
        return tuple(method.name for method in self.methods if method.oracle)

    @property
    def names(self) -> dict[str, str]:
        """What the stage of a folder name is called."""
        return {stage.folder.name: stage.label for stage in self.stages}

    @property
    def all_cells(self) -> list[CellInfo]:
        """Of row 0 and of every row."""
        return [*self.row0_cells.values(), *(cell for stage in self.row_stages for cell in stage.cells.values())]

    def learned(self, task: str) -> int | None:
        """The first row whose stage trained on the task; None if none did (yet)."""
        for index, stage in enumerate(self.row_stages):
            if task in stage.tasks:
                return index
        return None

    def change(self, task: str) -> Cell:
        """Score now minus score when learned; None for the latest task and where either was not measured."""
        learned, column = self.learned(task), self.tasks.index(task)
        if learned is None or learned == len(self.matrix) - 1:
            return None
        before, now = self.matrix[learned][column], self.matrix[-1][column]
        return None if before is None or now is None else now - before


@dataclass(frozen=True, slots=True)
class Run:
    """Everything in a run folder that a report shows; predictions are read when asked for."""

    name: str
    folder: Path
    created: str
    mmcl: str
    variants: tuple[Variant, ...]
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    summary: Summary | None = None

    @property
    def firsts(self) -> tuple[Variant, ...]:
        """The first run of each variant: what stands for its repeats with other seeds and orders."""
        return tuple({variant.group: variant for variant in reversed(self.variants)}.values())[::-1]


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError naming file and line if it is no run folder or a file is broken."""
    path = folder / "run.json"
    if not path.is_file():
        hint = "give the folder that `mmcl run` wrote, such as runs/NAME"
        raise UserError("not a run folder: it has no run.json", where=str(folder), hint=hint)
    run = read_object(path)
    variants = need(run, "variants", dict, str(path))
    recipe, environment = folder / "recipe.yaml", folder / "environment.json"
    return Run(
        name=str(run.get("name") or folder.resolve().name),
        folder=folder,
        created=str(run.get("created") or ""),
        mmcl=str(run.get("mmcl") or ""),
        variants=tuple(
            _variant(folder, home(folder, name, alone=len(variants) == 1), name, value, f"{path}: variants.{name}")
            for name, value in variants.items()
        ),
        recipe=read_yaml(recipe) if recipe.is_file() else {},
        environment=read_object(environment) if environment.is_file() else {},
        summary=read_summary(folder),
    )


def home(folder: Path, variant: str, *, alone: bool) -> Path:
    """Where a variant's matrix and metrics lie: a run without variants has them at its top."""
    own = folder / "variants" / variant
    return folder if alone and not own.is_dir() else own


def _variant(folder: Path, results: Path, name: str, value: Any, where: str) -> Variant:
    entry = expect(value, dict, where, "the variant")
    listed = need(entry, "stages", list, where)
    stages = [_stage(folder, expect(stage, dict, where, "a stage"), where) for stage in listed]
    path, numbers = results / "matrix.json", results / "metrics.json"
    grid = read_object(path) if path.is_file() else {}
    tasks = texts(grid, "tasks", str(path)) if grid else texts(entry, "tasks", where)
    rows = _rows(grid, stages, tasks, str(path)) if grid else []
    metrics = read_object(numbers) if numbers.is_file() else {}
    return Variant(
        name=name,
        tasks=tasks,
        rows=tuple(row for row, _, _ in rows),
        row_stages=tuple(stage for _, stage, _ in rows),
        matrix=tuple(cells for _, _, cells in rows),
        row0=None if grid.get("row0") is None else _cells(grid["row0"], tasks, str(path), "row0"),
        row0_cells=_row0_cells(folder, entry.get("row0"), where) if grid.get("row0") is not None else {},
        stages=tuple(stage for stage in stages if stage.done),
        planned=len(stages),
        metrics=expect(metrics.get("metrics", {}), dict, str(numbers), "metrics"),
        intervals=expect(metrics.get("intervals", {}), dict, str(numbers), "intervals"),
        definitions=expect(metrics.get("definitions", {}), dict, str(numbers), "definitions"),
        undefined=expect(metrics.get("undefined", {}), dict, str(numbers), "undefined"),
        warnings=texts(metrics, "warnings", str(numbers)) if "warnings" in metrics else (),
        methods=tuple(_method(method, where) for method in expect(entry.get("methods", []), list, where, "methods")),
        beside=read_beside(results, {stage.label: stage.curve for stage in stages if stage.done}),
        anatomy=read_anatomy(results),
        group=str(expect(entry.get("repeat", {}), dict, where, "repeat").get("group") or name),
    )


def _rows(
    grid: dict[str, Any], stages: list[Stage], tasks: tuple[str, ...], where: str
) -> list[tuple[str, Stage, Row]]:
    """Rows of the matrix with their stages. A row is known by its stage's label, or by its name."""
    rows = []
    labels, cells = texts(grid, "stages", where), need(grid, "matrix", list, where)
    by_label = {stage.label: stage for stage in stages}
    by_name = {stage.name: stage for stage in reversed(stages) if stage.scored}
    for index, (label, row) in enumerate(zip(labels, cells, strict=False)):  # the last row may not be written yet
        stage = by_label.get(label) or by_name.get(label)
        if stage is None:
            raise UserError(
                f"run.json lists no stage {label!r}", where=where, hint="run the recipe again to rewrite it"
            )
        if stage.done:
            rows.append((stage.label, stage, _cells(row, tasks, where, f"matrix[{index}]")))
    return rows


def _cells(value: Any, tasks: tuple[str, ...], where: str, what: str) -> Row:
    cells = expect(value, list, where, what)
    if len(cells) != len(tasks):
        raise UserError(f"{what} has {len(cells)} cells for {len(tasks)} tasks", where=where)
    return tuple(score(cell, where, f"{what}[{task}]") for cell, task in zip(cells, tasks, strict=True))


def _row0_cells(folder: Path, name: Any, where: str) -> dict[str, CellInfo]:
    if name is None:
        return {}
    return read_cells(_inside(folder, expect(name, str, where, "row0"), where))


def _inside(folder: Path, name: str, where: str) -> Path:
    home = folder / name
    if not home.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"the folder {name} lies outside the run", where=where)
    return home


def _stage(folder: Path, entry: dict[str, Any], where: str) -> Stage:
    label = need(entry, "label", str, where)
    home = _inside(folder, need(entry, "folder", str, where), where)
    path = home / "manifest.json"
    done = (home / "DONE").exists()
    manifest = read_object(path) if done else {}
    cost = expect(manifest.get("cost", {}), dict, str(path), "cost")
    experts = expect(manifest.get("experts", {}), dict, str(path), "experts")
    cells = read_cells(home) if done else {}
    asked = [cell.seconds for cell in cells.values() if cell.seconds is not None]
    if asked:
        cost = {**cost, "evaluation_seconds": sum(asked)}
    return Stage(
        label=label,
        name=str(entry.get("name") or label),
        kind=str(entry.get("kind") or "instruct"),
        folder=home,
        tasks=texts(entry, "tasks", where),
        scored=expect(entry.get("scored", True), bool, where, "scored"),
        done=done,
        cost={key: _number(value, str(path), f"cost.{key}") for key, value in cost.items() if value is not None},
        experts={task: expect(expert, str, str(path), f"experts.{task}") for task, expert in experts.items()},
        cells=cells,
        curve=expect(manifest.get("curve", []), list, str(path), "curve"),
    )


def _number(value: Any, where: str, what: str) -> float:
    return value if type(value) is int else expect(value, float, where, what)  # a count stays an int in the document


def _method(value: Any, where: str) -> MethodUse:
    entry = expect(value, dict, where, "a method")
    options = expect(entry.get("options", {}), dict, where, "options")
    oracle = expect(entry.get("needs_task_id", False), bool, where, "needs_task_id")
    return MethodUse(need(entry, "name", str, where), options, oracle)


def _answer(row: dict[str, Any], where: str) -> Answer:
    about = need(row, "metadata", dict, where)
    value = score(about.get("score"), where, "metadata.score")
    if value is None:
        raise UserError("metadata.score is missing", where=where)
    return Answer(
        id=str(row.get("question_id")),
        prompt=str(row.get("prompt") or ""),
        text=need(row, "text", str, where),
        score=value,
        references=tuple(str(answer) for answer in expect(about.get("answers", []), list, where, "metadata.answers")),
        route=str(about.get("route") or "base"),
        group=str(about.get("group") or ""),
        images=_images(about, where),
    )


def _images(about: dict[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    """Names in `images` with their `digests` beside them, or both in objects."""
    images = expect(about.get("images", []), list, where, "metadata.images")
    digests = expect(about.get("digests", []), list, where, "metadata.digests")
    pairs = []
    for image, digest in itertools.zip_longest(images, digests[: len(images)], fillvalue=""):
        entry = {"name": image, "digest": digest} if isinstance(image, str) else expect(image, dict, where, "an image")
        pairs.append((str(entry.get("name") or ""), str(entry.get("digest") or "")))
    return tuple(pairs)
