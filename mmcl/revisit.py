"""Back to a finished run: score one of its stages on a task, or ask it a question of your own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcl.cells import sampling
from mmcl.data.images import FileImage
from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Turn
from mmcl.errors import UserError
from mmcl.evaluation.choices import choices_of
from mmcl.evaluation.evaluate import answer, evaluate_task
from mmcl.evaluation.predictions import write_predictions
from mmcl.experiment import Experiment
from mmcl.progress import Progress
from mmcl.protocols import Metric
from mmcl.recipe import registry
from mmcl.recipe.load import load_recipe
from mmcl.recipe.spec import PluginSpec
from mmcl.recipe.suggest import did_you_mean
from mmcl.stages import asked
from mmcl.training.methods import Methods


def open_run(folder: Path, progress: Progress | None = None) -> Experiment:
    """The experiment of a run's folder.

    Raises:
        UserError: it is no such folder.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError("there is no recipe.yaml in it", where=str(folder), hint="give the folder of a run")
    return Experiment(load_recipe(path), folder, progress=progress)


def evaluate(
    folder: Path,
    *,
    stage: str,
    task: str,
    variant: str | None = None,
    sample: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask a stage's model the test questions of any task of the stream.

    Args:
        folder: of the run.
        stage: name or label of a finished stage, `start`, or `last`.
        task: its name.
        variant: None for the first.
        sample: ask only so many questions, chosen by a hash of their ids; default: as the recipe says.
        progress: shows what goes on.

    Returns:
        {"stage", "task", "metric", "corpus", "n", "questions", "interval", "answers", "definition", "predictions": path
        of the answer file}; `interval` is None where all of the task's `questions` were asked

    Raises:
        UserError: there is no such stage, task or variant.
    """
    run = open_run(folder, progress)
    session, chosen, _, tasks = run.open(variant, stage)
    names = [each.name for each in tasks if each.test]
    if task not in names:
        raise UserError(f"the stream has no test questions for `{task}`", where="task", hint=did_you_mean(task, names))
    wanted = next(each for each in tasks if each.name == task)
    spec = session.recipe.evaluate
    spec = replace(spec, sample=sample or spec.sample)
    choices = choices_of(wanted) if spec.answers == "likelihood" else None
    metric: Metric = registry.build("metrics", PluginSpec(wanted.metric, wanted.metric_options), session.recipe.folder)
    cell = evaluate_task(
        session.model,
        session.active(chosen),
        asked(wanted, spec),
        metric,
        spec,
        accelerator=run.accelerator,
        progress=run.progress,
        label=f"{chosen.label} on {task}",
        stage=Path(chosen.folder).name,
        choices=choices,
    )
    path = folder / "evaluations" / f"{run.variant(variant)}-{chosen.label}-on-{task}.jsonl"
    write_predictions(path, cell.predictions, cell.score.rows, model_id=chosen.label)
    return {
        "stage": chosen.name,
        "task": task,
        "metric": wanted.metric,
        "corpus": cell.score.corpus,
        "n": len(cell.predictions),
        **sampling(cell, wanted),
        "answers": spec.answers,
        "definition": metric.definition,
        "predictions": str(path),
    }


def ask(
    folder: Path,
    *,
    question: str,
    image: Path | None = None,
    stage: str = "last",
    variant: str | None = None,
    progress: Progress | None = None,
) -> list[dict[str, str]]:
    """Ask one question of one stage, or of each finished one in turn.

    Args:
        folder: of the run.
        question: the text.
        image: a picture that the question is about.
        stage: name or label of a finished stage, `last`, or `all`.
        variant: None for the first.
        progress: shows what goes on.

    Returns:
        [{"stage", "answer", "route"}], one per stage asked.

    Raises:
        UserError: there is no such stage or variant, or the image can't be read.
    """
    return ask_experiment(open_run(folder, progress), question=question, image=image, stage=stage, variant=variant)


def ask_experiment(
    run: Experiment, *, question: str, image: Path | None = None, stage: str = "last", variant: str | None = None
) -> list[dict[str, str]]:
    """`ask` of an experiment at hand."""
    images = (FileImage(image.resolve().parent, image.name),) if image else ()
    text = f"{IMAGE_PLACEHOLDER}\n{question}" if image else question
    sample = Sample(id="asked", task="", turns=(Turn("user", text),), images=images)
    for picture in images:
        picture.open()  # a broken picture is reported before the model loads
    recipe, _, stages = run.stages(run.variant(variant))
    wanted = [run.find(stages, stage)] if stage != "all" else [each for each in stages if run.done(each)]
    rows = []
    session = None
    for each in wanted:
        session = None  # before the next one takes as much memory
        session = run.at(each, stages, recipe)
        methods = session.active(each) if each.task else Methods({})
        ((reply, route),) = answer(session.model, methods, [sample], recipe.evaluate)
        rows.append({"stage": each.name, "answer": reply, "route": route})
    return rows
