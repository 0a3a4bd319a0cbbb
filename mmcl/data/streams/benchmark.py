"""Benchmarks of continual instruction tuning as they lie on disk, each a small declarative file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, Literal, cast

from mmcl.data.streams.files import Files, FormatMaker, TaskFiles
from mmcl.data.types import Task
from mmcl.errors import Problem, UserError

_KEYS = ("summary", "source", "folder", "images", "format", "suffix", "tasks")
_TASK_KEYS = (
    *("name", "train", "test", "images", "format", "train_options", "test_options", "suffix"),
    *("metric", "strict", "paper", "kind", "time", "domain", "language", "choices", "ids", "group"),
)


class Benchmark:
    """A benchmark's tasks in its order, with its file names, image folders and metrics.

    Known are `coin`, `ucit`, `mllm_dcl`, `mllm_acl`, `trigap` and `vqacl`. Another one is a YAML file: `images`, and
    `tasks`, each with `name`, `train`, `test` and `metric` (or `strict` and `paper` where the two differ), and as
    needed `images`, `format`, `suffix` and the other keys of the stream `files`.

    Args:
        benchmark: a name, or a YAML file beside the recipe, such as `./mine.yaml`.
        folder: where its files lie; relative to the recipe's folder.
        images: image folder, relative to `folder`; by default the benchmark's. `{task}` is the task's name.
        tasks: names of tasks, in order; None for all in the benchmark's order.
        scoring: `strict` scores as the tasks' own scripts do, `paper` as the benchmark's paper did.
        skip_missing: run the tasks whose files are there, and leave out the others.
        leave_out: groups that are left out of training and asked at the test (VQACL's novel compositions).
        root: the recipe's folder.
        formats: makes formats by name.
    """

    def __init__(
        self,
        *,
        benchmark: str,
        folder: str,
        images: str | None = None,
        tasks: list[str] | None = None,
        scoring: Literal["strict", "paper"] = "strict",
        skip_missing: bool = False,
        leave_out: list[str] | None = None,
        root: Path = Path(),
        formats: FormatMaker | None = None,
    ) -> None:
        self.benchmark, self.root, self.formats = benchmark, root, formats
        self.folder = folder
        self.images, self.names, self.scoring = images, tasks, scoring
        self.skip_missing, self.leave_out = skip_missing, leave_out

    def tasks(self) -> Sequence[Task]:
        """The tasks in order.

        Raises:
            UserError: the benchmark is unknown or its file broken; a task's files are missing; mistakes in files.
        """
        layout = self._layout()
        listed = {str(task["name"]): task for task in layout["tasks"]}
        unknown = [name for name in self.names or () if name not in listed]
        if unknown:
            hint = f"{self.benchmark} has {', '.join(listed)}"
            raise UserError(f"no such tasks: {', '.join(unknown)}", where="stream.tasks", hint=hint)
        home = self.root / Path(self.folder).expanduser()
        if not home.is_dir():
            hint = f"it {layout.get('folder', 'holds the data')}"
            raise UserError(f"the folder {home} does not exist", where="stream.folder", hint=hint)
        wanted = [self._files(layout, listed[name]) for name in self.names or listed]
        missing = {task["name"]: gone for task in wanted if (gone := _missing(home, task))}
        there = [task for task in wanted if task["name"] not in missing]
        if missing and (not self.skip_missing or not there):
            rest = ", ".join(task["name"] for task in there)
            offer = f"put it there, or run the rest with `skip_missing: true` or `tasks: [{rest}]`" if there else ""
            hint = offer or f"the folder {layout.get('folder', 'holds the data')}"
            raise UserError(
                problems=[
                    Problem(f"{self.benchmark}, task {name}", f"there is no {gone} in {home}", hint)
                    for name, gone in missing.items()
                ]
            )
        return Files(folder=self.folder, tasks=there, root=self.root, formats=self.formats).tasks()

    def _files(self, layout: Mapping[str, Any], task: Mapping[str, Any]) -> TaskFiles:
        """The task as the stream `files` wants it."""
        kept = {
            key: value for key, value in task.items() if key not in ("metric", "strict", "paper", "suffix", "images")
        }
        metric = task.get("metric") or task[self.scoring]
        options = dict(metric) if isinstance(metric, Mapping) else {"name": metric}
        name = str(options.pop("name"))
        if self.scoring == "paper" and name in _TWO_MODES:
            options.setdefault("mode", "paper")
        result = {**kept, "metric": name, "metric_options": options}
        if "format" in layout:
            result.setdefault("format", layout["format"])
        images = self.images or task.get("images") or layout.get("images") or "."
        result["images"] = str(images).replace("{task}", str(task["name"]))
        suffix = task.get("suffix", layout.get("suffix"))
        for key in ("train_options", "test_options"):
            more: dict[str, Any] = {"suffix": suffix} if suffix else {}
            if key == "train_options" and "format" not in result:
                more["ids"] = "row"  # published training files name several rows alike; nobody scores these
            if key == "train_options" and self.leave_out:
                more["leave_out"] = list(self.leave_out)
            if more:
                result[key] = {**more, **result.get(key, {})}
        return cast(TaskFiles, result)

    def _layout(self) -> Mapping[str, Any]:
        import yaml

        own = self.benchmark.endswith((".yaml", ".yml"))
        home = resources("mmcl.data.benchmarks")
        path: Any = self.root / self.benchmark if own else home.joinpath(f"{self.benchmark}.yaml")
        if not path.is_file():
            known = sorted(entry.name.removesuffix(".yaml") for entry in home.iterdir() if entry.name.endswith(".yaml"))
            hint = f"known are {', '.join(known)}; or write ./FILE.yaml"
            raise UserError(f"there is no benchmark `{self.benchmark}`", where="stream.benchmark", hint=hint)
        try:
            layout = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"broken YAML: {error}", where=str(path)) from error
        problems = _mistakes(layout, str(path))
        if problems:
            raise UserError(problems=problems)
        return cast(Mapping[str, Any], layout)


_TWO_MODES = frozenset(
    {
        "exact",
        "contains",
        "vqa_accuracy",
        "textvqa",
        "vizwiz",
        "gqa",
        "scienceqa",
        "ocrvqa",
        "anls",
        "chartqa",
        "refcoco",
        "pope",
        "cider",
        "bleu",
        "rouge_l",
    }
)
"""Metrics whose option `mode` can be `paper`."""


def _mistakes(layout: Any, where: str) -> list[Problem]:
    """What is wrong with a benchmark's file."""
    if not isinstance(layout, Mapping) or not isinstance(layout.get("tasks"), list) or not layout["tasks"]:
        return [Problem(where, "a benchmark is a mapping with a list of `tasks`", "see mmcl/data/benchmarks/coin.yaml")]
    problems = [
        Problem(where, f"unknown key `{key}`", f"keys are {', '.join(_KEYS)}") for key in layout if key not in _KEYS
    ]
    for index, task in enumerate(layout["tasks"]):
        place = f"{where}, tasks.{index}"
        if not isinstance(task, Mapping):
            problems.append(Problem(place, "a task is a mapping", "with `name`, `train`, `test` and `metric`"))
            continue
        unknown = [str(key) for key in task if key not in _TASK_KEYS]
        if unknown:
            problems.append(Problem(place, f"unknown keys: {', '.join(unknown)}", f"keys are {', '.join(_TASK_KEYS)}"))
        lacking = [key for key in ("name", "train") if not task.get(key)]
        if not task.get("metric") and not (task.get("strict") and task.get("paper")):
            lacking.append("metric (or strict and paper)")
        if lacking:
            problems.append(Problem(place, f"it lacks {', '.join(lacking)}", "add it"))
    return problems


def _missing(home: Path, task: TaskFiles) -> str:
    """The first file that the task needs and that is not there; empty where all are."""
    for names in (task["train"], task.get("test")):
        listed = [names] if isinstance(names, str) else names or []
        if listed and not any((home / name).exists() for name in listed):
            return " or ".join(listed)
    return ""
