"""Run a recipe: every variant, every stage, every cell of the matrix; finished parts are kept and shared."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from mmcl import __version__
from mmcl.cells import Cells
from mmcl.data.types import Task
from mmcl.errors import UserError
from mmcl.evaluation.all_metrics import metrics_of
from mmcl.evaluation.knowledge import changing
from mmcl.evaluation.matrix import Matrix
from mmcl.files import read_json, write_atomically, write_json
from mmcl.gallery import write_thumbnails
from mmcl.intervals import write_intervals
from mmcl.measures import Measures
from mmcl.progress import Progress
from mmcl.recipe import registry
from mmcl.recipe.repeats import ALONE
from mmcl.recipe.spec import PluginSpec, Recipe
from mmcl.session import Session, describe_methods
from mmcl.stages import Stage, code_of, plan, rows_of, stream_tasks
from mmcl.training import checkpoint
from mmcl.training.methods import Methods

PACKAGES = ("torch", "transformers", "peft", "timm", "open_clip_torch", "accelerate", "datasets", "pillow", "numpy")


class Experiment:
    """A recipe and the folder of its run.

    Args:
        recipe: with or without variants.
        folder: of the run; made if need be. A finished stage in it is used again if all it depends on is the same.
        progress: shows what goes on; default: nothing.
        encoder: a vision encoder to use instead of the one that the recipe names.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        progress: Progress | None = None,
        encoder: nn.Module | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.recipe = recipe
        self.folder = folder
        self.progress = progress or Progress.silent()
        self.encoder = encoder
        self.accelerator = Accelerator()
        self.main = self.accelerator.is_main_process
        self.cells = Cells(folder, self.accelerator, self.progress)
        self.measures = Measures(folder, self.accelerator, self.progress)
        self._streams: dict[str, list[Task]] = {}

    # -------------------------------------------------------------------------------------------------- the run

    def run(self, only: str | None = None) -> None:
        """Train and evaluate all variants (or only one) and write matrices, metrics and the report.

        Args:
            only: a variant, with all its seeds and orders, or one of these runs.

        Raises:
            UserError: a mistake in the recipe, the data or a plug-in; what was finished stays.
        """
        names = self.recipe.variant_names if only is None else self.recipe.runs_of(only)
        plans = {name: self.stages(name) for name in names}
        self._write_heads(plans, keep_others=only is not None)
        for _, _, stages in plans.values():
            self.cells.remember(stages)
            self.measures.remember(stages)
        for name, (recipe, _, stages) in plans.items():
            if len(plans) > 1:
                self.progress.message(f"variant {name}")
            self._run_variant(name, recipe, stages)
        if self.main:
            from mmcl.report import write

            write_intervals(self.folder, {name: self.home(name) for name in self.recipe.variant_names})
            write(self.folder)

    def stages(self, variant: str) -> tuple[Recipe, list[Task], list[Stage]]:
        """The recipe, the stream's tasks and the stages of a variant.

        Raises:
            UserError: the stream can't be built, or the stages do not fit it.
        """
        recipe = self.recipe.variant(variant)
        plain = recipe.to_dict()
        key = json.dumps([plain["stream"], plain["setting"], recipe.seed], sort_keys=True, default=str)
        if key not in self._streams:
            self._streams[key] = stream_tasks(recipe)
            problems = [
                problem
                for task in self._streams[key]
                for problem in registry.check(
                    "metrics", PluginSpec(task.metric, task.metric_options), recipe.folder, f"task {task.name}, metric"
                )
            ]
            if problems:
                raise UserError(problems=problems)
        tasks = self._streams[key]
        fingerprint = ""
        if self.encoder is not None:
            from mmcl.model.features import fingerprint as of

            fingerprint = of(self.encoder, "object")
        return recipe, tasks, plan(recipe, tasks, fingerprint)

    def _run_variant(self, name: str, recipe: Recipe, stages: list[Stage]) -> None:
        by_name = {stage.task.name: stage.task for stage in stages if stage.task}
        columns = [column for stage in stages for column in stage.columns]
        ahead = changing(columns)
        scores: dict[str, dict[str, float]] = {}
        row0 = self._row0(recipe, stages)
        session: Session | None = None

        def at(stage: Stage) -> Session:
            nonlocal session
            if session is None or session.at != stage.hash:
                session = None  # before the next one takes as much memory
                session = self.at(stage, stages, recipe)
            return session

        for stage in stages:
            if not self.done(stage):
                manifest = at(stages[stage.index - 1]).train(stage, by_name, self.folder)
                self._log(name, stage, manifest)
            given = _given(stages, stage, recipe)
            wanted = self._columns(stage, stages, recipe, columns, row0, ahead=ahead)
            missing = [task for task in wanted if self.cells.score(stage, task, recipe) is None]
            if missing:
                methods = Methods({}) if stage is row0 else at(stage).active(stage)
                measured = self.cells.measure(stage, missing, recipe, at(stage), methods, given)
                for about in measured:
                    row = {"variant": name, "stage": stage.label, "task": about["task"], "metric": about["metric"]}
                    result = {"score": about["corpus"], "n": about["n"], "reused": about["reused"]}
                    self._append("results.jsonl", {**row, **result})
            scores[stage.hash] = {task.name: self._read_score(stage, task, recipe) for task in wanted}
            self._write_matrix(name, stages, columns, scores, row0)
            self.measures.after(stage, stages, recipe, lambda here=stage: at(here), given)  # type: ignore[misc]
            self.measures.write(self.home(name), stages, recipe, stages[: stage.index + 1])
        if self.main:
            write_thumbnails(self.folder, stages, columns)

    def _row0(self, recipe: Recipe, stages: Sequence[Stage]) -> Stage | None:
        """The stage after which every task is asked before the first of them is trained."""
        rows = rows_of(stages)
        return stages[rows[0].index - 1] if rows and recipe.evaluate.zero_shot else None

    def _columns(
        self,
        stage: Stage,
        stages: Sequence[Stage],
        recipe: Recipe,
        columns: Sequence[Task],
        row0: Stage | None,
        *,
        ahead: bool,
    ) -> list[Task]:
        """The tasks to be asked after this stage; `ahead`: also what the next one teaches, to see what that changes."""
        rows = rows_of(stages)
        if stage is row0 or (stage in rows and recipe.evaluate.tasks == "all"):
            return list(columns)
        seen = [column for each in stages[: stage.index + 1] for column in each.columns]
        for following in stages[stage.index + 1 : stage.index + 2]:
            if ahead or following.kind == "refine":
                seen += following.columns
        return seen

    def at(self, stage: Stage, stages: Sequence[Stage], recipe: Recipe) -> Session:
        """A new session at a finished stage."""
        session = Session(recipe, self.accelerator, self.progress, self.encoder)
        session.load(stage, stages, self.folder)
        return session

    def open(self, variant: str | None, stage: str) -> tuple[Session, Stage, list[Stage], list[Task]]:
        """A session at a finished stage.

        Args:
            variant: None for the only or first one.
            stage: its name, its label, `start`, or `last`.

        Raises:
            UserError: there is no such variant or stage, or it is not finished.
        """
        recipe, tasks, stages = self.stages(self.variant(variant))
        chosen = self.find(stages, stage)
        return self.at(chosen, stages, recipe), chosen, stages, tasks

    def variant(self, name: str | None) -> str:
        """The variant of that name, or the first."""
        names = self.recipe.variant_names
        if name is not None and name not in names:
            raise UserError(f"there is no variant `{name}`", where=str(self.folder), hint=f"it has {', '.join(names)}")
        return name or names[0]

    def find(self, stages: Sequence[Stage], wanted: str) -> Stage:
        """The finished stage of that name or label."""
        done = [stage for stage in stages if self.done(stage)]
        if wanted == "last":
            return done[-1]
        found = [stage for stage in done if wanted in (stage.name, stage.label)]
        if not found:
            raise UserError(
                f"there is no finished stage `{wanted}`",
                where=str(self.folder),
                hint=f"finished are {', '.join(stage.name for stage in done)}",
            )
        return found[-1]

    # ---------------------------------------------------------------------------------------------- what is there

    def done(self, stage: Stage) -> bool:
        """Whether the stage is finished; the start always is."""
        return stage.task is None or (self.folder / stage.folder / checkpoint.DONE).exists()

    def _read_score(self, stage: Stage, task: Task, recipe: Recipe) -> float:
        self.accelerator.wait_for_everyone()
        score = self.cells.score(stage, task, recipe)
        assert score is not None
        return score

    # --------------------------------------------------------------------------------------------------- files

    def home(self, variant: str) -> Path:
        """Where the variant's matrix lies: the run's folder, or `variants/NAME` where the recipe has variants."""
        return self.folder if variant == ALONE and not self.recipe.variants else self.folder / "variants" / variant

    def _write_matrix(
        self,
        variant: str,
        stages: Sequence[Stage],
        columns: Sequence[Task],
        scores: Mapping[str, Mapping[str, float]],
        row0: Stage | None,
    ) -> None:
        if not self.main or not columns:
            return
        rows = [stage for stage in rows_of(stages) if stage.hash in scores]
        first = scores.get(row0.hash) if row0 else None
        matrix = Matrix(
            tasks=[task.name for task in columns],
            stages=[stage.name for stage in rows],
            values=[[scores[stage.hash].get(task.name) for task in columns] for stage in rows],
            row0=[first.get(task.name) for task in columns] if first else None,
        )
        home = self.home(variant)
        home.mkdir(parents=True, exist_ok=True)
        matrix.write_json(home / "matrix.json")
        matrix.write_csv(home / "matrix.csv")
        if rows:
            write_json(home / "metrics.json", metrics_of(matrix))

    def _write_heads(self, plans: Mapping[str, tuple[Recipe, list[Task], list[Stage]]], *, keep_others: bool) -> None:
        """What can be said before anything ran: recipe, environment, the plan of the run."""
        if not self.main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        resolved = self.recipe.to_dict()
        if self.encoder is not None:  # no recipe can build an object that was passed in; say so, and what it was
            kind = type(self.encoder)
            resolved["model"]["encoder"] = f"{kind.__module__}.{kind.__qualname__} (an object given in Python)"
        text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
        write_atomically(self.folder / "recipe.yaml", text)
        write_json(self.folder / "environment.json", environment(str(self.accelerator.device)))
        path = self.folder / "run.json"
        old = read_json(path) if path.exists() else {}
        others = old.get("variants", {}) if keep_others else {}
        write_json(
            path,
            {
                "name": self.recipe.name,
                "created": old.get("created") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "mmcl": __version__,
                "variants": {**others, **{name: self._head(name, each[0], each[2]) for name, each in plans.items()}},
            },
        )

    def _head(self, name: str, recipe: Recipe, stages: list[Stage]) -> dict[str, Any]:
        repeat = self.recipe.repeats[name]
        row0 = self._row0(recipe, stages)
        rows = rows_of(stages)
        used = rows or list(stages)  # an alignment has methods of its own
        specs = list({json.dumps([m.name, dict(m.options)]): m for stage in used for m in stage.methods}.values())
        made = {
            str(k): registry.build("methods", spec, recipe.folder, seed=recipe.seed) for k, spec in enumerate(specs)
        }
        return {
            "tasks": [column.name for stage in stages for column in stage.columns],
            "stages": [
                {
                    "name": stage.name,
                    "label": stage.label,
                    "folder": stage.folder,
                    "kind": stage.kind,
                    "tasks": stage.tasks,
                    "scored": stage in rows,
                }
                for stage in stages
                if stage.task
            ],
            "methods": describe_methods(specs, made),
            "row0": row0.folder if row0 else None,
            "repeat": {"group": repeat.group, "seed": repeat.seed, "order": repeat.order},
        }

    def _log(self, variant: str, stage: Stage, manifest: Mapping[str, Any]) -> None:
        event = {"event": "stage", "variant": variant, "stage": stage.label, "losses": manifest["losses"]}
        self._append("log.jsonl", {**event, "cost": manifest["cost"]})

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if not self.main:
            return
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _given(stages: Sequence[Stage], stage: Stage, recipe: Recipe) -> str:
    """What stands for everything but weights that train: the model's recipe, our version, and the user's own code."""
    methods = [method for each in stages[: stage.index + 1] for method in each.methods]
    return json.dumps([stages[0].hash, code_of("methods", methods, recipe.folder)], sort_keys=True)


def environment(device: str) -> dict[str, Any]:
    """Versions and machine, for the run's folder."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "mmcl": __version__,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device": device,
    }
