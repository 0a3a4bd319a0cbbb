"""The command `mmcl check`: mistakes in a recipe, and in the data that it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcl.cli_output import DONE, YOUR_MISTAKE, Result, print_problems, print_table, problems_document
from mmcl.errors import Problem, UserError
from mmcl.recipe import registry
from mmcl.recipe.load import load_recipe
from mmcl.recipe.spec import PluginSpec, Recipe

if TYPE_CHECKING:
    from rich.console import Console


def check_recipe(path: Path, overrides: Sequence[str]) -> Result:
    """Every mistake that can be found without weights.

    Args:
        path: the recipe's file.
        overrides: `path=value` each.
    """
    problems: list[Problem] = []
    reports: dict[str, Any] = {}
    try:
        recipe = load_recipe(path, overrides)
    except UserError as error:
        problems += error.problems
    else:
        for name in recipe.variant_names:
            found, reports[name] = _check_data(recipe.variant(name))
            problems += found
    problems = list(dict.fromkeys(problems))  # variants share mistakes

    def show(console: Console) -> None:
        for names, report in _together(reports):
            if len(reports) > 1:
                console.print(", ".join(names), style="bold", markup=False)
            _show_data(console, report)
        if problems:
            print_problems(problems, as_json=False, headline=f"{path}: {len(problems)} mistake(s)")
        else:
            console.print(f"{path}: no mistakes", markup=False)

    return Result({**problems_document(problems), "data": reports}, show, YOUR_MISTAKE if problems else DONE)


def _together(reports: dict[str, Any]) -> list[tuple[list[str], Any]]:
    """Variants with the same data, which are told once."""
    groups: list[tuple[list[str], Any]] = []
    for name, report in reports.items():
        same = next((names for names, other in groups if other == report), None)
        if same is None:
            groups.append(([name], report))
        else:
            same.append(name)
    return groups


def _show_data(console: Console, report: dict[str, Any]) -> None:
    """A row per task; the document (`--json`) says more."""
    rows = []
    for task in report.get("tasks", ()):
        row = {"task": task["name"], "kind": task["kind"], "metric": task["metric"]}
        for part in ("train", "test"):
            row |= {part: task[part]["rows"], f"{part} images": task[part]["images"]}
        seen, new = task["test_images_in_training"], task["answers_not_in_training"]
        row["test images in training"] = f"{seen['images']} of {seen['of']}"
        row["answers not in training"] = f"{new['questions']} of {new['of']}"
        rows.append(row)
    if rows:
        print_table(console, list(rows[0]), rows)
    for note in report.get("notes", ()):
        console.print(str(note), markup=False)


def _check_data(recipe: Recipe) -> tuple[list[Problem], dict[str, Any]]:
    """Mistakes in the data of a recipe of one variant, and what the data are."""
    from mmcl.data.check import check_tasks
    from mmcl.stages import check_tasks as check_names
    from mmcl.stages import stream_tasks

    try:
        tasks = stream_tasks(recipe)
    except UserError as error:
        return list(error.problems), {}
    problems: list[Problem] = []
    for place, probe in enumerate(recipe.probes):
        try:
            registry.build("streams", probe, recipe.folder, seed=recipe.seed).tasks()
        except UserError as error:
            problems += [Problem(f"probes.{place}: {each.where}", each.message, each.hint) for each in error.problems]
    try:
        check_names(recipe, tasks)
    except UserError as error:
        problems += error.problems
    for task in tasks:
        metric = PluginSpec(task.metric, task.metric_options)
        problems += registry.check("metrics", metric, recipe.folder, f"stream, task {task.name}, metric")
    found, report = check_tasks(tasks)
    return problems + list(found), report
