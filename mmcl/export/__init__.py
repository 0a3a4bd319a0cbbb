"""Out again: a stage of a run as a folder that transformers loads without mmcl."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmcl.data.types import Task
from mmcl.errors import UserError
from mmcl.experiment import Experiment
from mmcl.export.adapter import write_adapter
from mmcl.export.card import model_card
from mmcl.export.llava import llava_of
from mmcl.export.ready import vlm_of
from mmcl.export.weights import adapters_of, low_rank
from mmcl.model.quiet import quiet
from mmcl.progress import Progress
from mmcl.protocols import BASE, Route
from mmcl.recipe.suggest import did_you_mean
from mmcl.revisit import open_run
from mmcl.session import Session
from mmcl.stages import Stage

BASE_NAME = "base"


@dataclass(frozen=True, slots=True)
class Exported:
    """A folder that was written.

    Attributes:
        folder: where it is.
        route: whose weights are in it.
        tasks: that take this route.
        model_class: of transformers.
    """

    folder: Path
    route: str
    tasks: tuple[str, ...]
    model_class: str


def export(
    folder: Path,
    *,
    stage: str = "last",
    variant: str | None = None,
    route: str | None = None,
    out: Path | None = None,
    adapters: Literal["merged", "peft"] = "merged",
    progress: Progress | None = None,
) -> list[Exported]:
    """Write a stage's model for transformers, one folder per route.

    Args:
        folder: of the run.
        stage: name or label of a finished stage, or `last`.
        variant: None for the first.
        route: a task's or expert's name, or `base`; None for all there are. Several go into folders of `out` by name.
        adapters: of the language model: `merged` into the weights, or beside them in a folder `adapter` for peft.
        out: must not exist yet, or be empty; default: `exports/STAGE` in the run's folder.
        progress: shows what goes on.

    Raises:
        UserError: no such run, stage, variant or route; a folder with files in it; a model that no class of
            transformers holds. Nothing is written then.
    """
    run = open_run(folder, progress)
    session, chosen, _, tasks = run.open(variant, stage)
    routes = routes_of(session, chosen, tasks)
    wanted = routes if route is None else {route: routes[_known(route, routes, folder)]}
    target = out or folder / "exports" / chosen.label
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("there is something already", where=str(target), hint="give another folder by --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    done = []
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
        made = Path(name) / "made"
        for label, (path, names) in wanted.items():
            place = made / label if len(wanted) > 1 else made
            done.append(_write(run, session, chosen, variant, label, path, names, place, adapters))
        if target.exists():
            target.rmdir()
        shutil.move(made, target)
    return [Exported(target / each.folder.relative_to(made), each.route, each.tasks, each.model_class) for each in done]


def routes_of(session: Session, stage: Stage, tasks: list[Task]) -> dict[str, tuple[Route, tuple[str, ...]]]:
    """The routes that tasks seen so far take by their own names, and those tasks; `base` where none is taken."""
    methods = session.active(stage)
    seen = {name for names in session.seen.values() for name in names}
    firsts = [task.train[0] for task in tasks if task.name in seen and task.train]
    found: dict[str, tuple[Route, tuple[str, ...]]] = {}
    for sample, route in zip(firsts, methods.assign(session.model, firsts) if firsts else (), strict=True):
        label = route.label if route != BASE else BASE_NAME
        found[label] = (route, (*found.get(label, (route, ()))[1], sample.task))
    return found or {BASE_NAME: (BASE, ())}


def _known(route: str, routes: dict[str, tuple[Route, tuple[str, ...]]], folder: Path) -> str:
    for label, (_, names) in routes.items():
        if route == label or route in names:
            return label
    if route == BASE_NAME:
        routes[BASE_NAME] = (BASE, ())
        return BASE_NAME
    raise UserError(
        f"there is no route `{route}`",
        where=str(folder),
        hint=did_you_mean(route, [*routes, BASE_NAME]) or f"there are {', '.join([*routes, BASE_NAME])}",
    )


def _write(
    run: Experiment,
    session: Session,
    stage: Stage,
    variant: str | None,
    label: str,
    route: Route,
    tasks: tuple[str, ...],
    place: Path,
    adapters: str,
) -> Exported:
    recipe = session.recipe
    spec = recipe.model
    with quiet():
        merged = adapters_of(route) if adapters == "merged" else ()
        if spec.vlm is not None:
            model, processor, at = vlm_of(session.model, spec, recipe.folder, recipe.seed, route, label, merged)
        else:
            model, processor, at = llava_of(session.model, route, label, merged)
        model.generation_config.max_new_tokens = recipe.evaluate.max_new_tokens
        model.save_pretrained(place)
        processor.save_pretrained(place)
        layers = low_rank(session.model.language, () if merged else adapters_of(route))
        name = type(model).__name__
        if layers:
            write_adapter(model, layers, at, place / "adapter")
    card: dict[str, Any] = {"class": name, "route": label, "tasks": tasks, "adapter": bool(layers)}
    text = model_card(run.folder, run.variant(variant), stage, recipe, card)
    (place / "README.md").write_text(text, encoding="utf-8")
    return Exported(place, label, tasks, name)
