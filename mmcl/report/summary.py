"""What the page and the terminal both say: the averages, the sentences, the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcl.report import units
from mmcl.report.run import Cell, Run, Variant

CORE = ("ACC", "OP", "MAA", "MFT", "BWT", "FM", "FWT", "intransigence")
"""What is shown first: the averages, what was learned, what was lost. The other definitions in use come after them."""

BEFORE = "zero-shot"
"""Name of row 0: the scores before the first task."""


def averages(variant: Variant) -> tuple[Cell, ...]:
    """After each stage, the mean score of the tasks learned so far (those that were measured)."""
    result: list[Cell] = []
    for index, row in enumerate(variant.matrix):
        scores = [
            cell
            for task, cell in zip(variant.tasks, row, strict=True)
            if cell is not None and (learned := variant.learned(task)) is not None and learned <= index
        ]
        result.append(sum(scores) / len(scores) if scores else None)
    return tuple(result)


def front(run: Run) -> list[str]:
    """Variants that no other one beats in accuracy (ACC), learning (MFT) and forgetting (FM) at once: the Pareto front.

    Empty where fewer than two variants have all three.
    """
    known: dict[str, tuple[float | None, float | None, float | None]] = {}
    for variant in run.variants:
        values = [variant.metrics.get(name) for name in ("ACC", "MFT", "FM")]
        if all(isinstance(value, int | float) for value in values):
            known[variant.name] = (float(values[0]), float(values[1]), float(values[2]))  # type: ignore[arg-type]
    return not_beaten(known)


def not_beaten(sides: Mapping[str, tuple[float | None, float | None, float | None]]) -> list[str]:
    """Names that no other one beats in accuracy, learning and (less is better) forgetting at once.

    Empty where fewer than two have all three.
    """
    known = {
        name: (accuracy, learning, -forgetting)
        for name, (accuracy, learning, forgetting) in sides.items()
        if accuracy is not None and learning is not None and forgetting is not None
    }
    if len(known) < 2:
        return []

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(other != mine and all(a >= b for a, b in zip(other, mine, strict=True)) for other in known.values())

    return [name for name, mine in known.items() if not beaten(mine)]


def summary(variant: Variant) -> str:
    """What happened, in one to three plain sentences."""
    unfinished = len(variant.stages) < variant.planned
    progress = f" The run is not finished: {len(variant.stages)} of {variant.planned} stages are done."
    if not variant.matrix:
        return "Nothing has been scored yet." + (progress if unfinished else "")
    learned = sum(variant.learned(task) is not None for task in variant.tasks)
    tasks = f"{learned} task{'' if learned == 1 else 's'}"
    average = averages(variant)[-1]
    text = f"After {tasks}, average accuracy is {units.percent(average)}."
    forgetting = variant.metrics.get("FM")
    changes = {task: change for task in variant.tasks if (change := variant.change(task)) is not None}
    if isinstance(forgetting, int | float) and changes:
        worst = min(changes, key=lambda task: changes[task])
        column, row = variant.tasks.index(worst), variant.learned(worst) or 0
        fall = f"{units.percent(variant.matrix[row][column])} \u2192 {units.percent(variant.matrix[-1][column])}"
        if round(forgetting, 3) > 0:
            text += f" On average {units.cell(forgetting)} points were forgotten"
            text += f", most on \u201c{worst}\u201d ({fall})." if changes[worst] < 0 else "."
        else:
            text += " On average nothing was forgotten"
            text += f"; the largest fall is on \u201c{worst}\u201d ({fall})." if round(changes[worst], 3) < 0 else "."
    return text + (progress if unfinished else "")


def sampling(run: Run) -> list[str]:
    """What to know about the scores: questions that were not all asked, answers that were chosen among some."""
    cells = [cell for variant in run.variants for cell in variant.all_cells]
    notes = []
    some = [cell for cell in cells if cell.sampled]
    if some:
        most = max(cell.n or 0 for cell in some)
        notes.append(f"At most {most:,} questions of each task were asked, chosen by a hash of their ids.")
        notes += dict.fromkeys(cell.interval_definition for cell in some if cell.interval_definition)
    sources = dict.fromkeys(str(cell.choices.get("source", "")) for cell in cells if cell.choices)
    if sources:
        notes.append(
            f"Each answer is the most likely one (sum over its tokens) of {' or of '.join(sources)}: no score of "
            "answers that the model writes itself, and not comparable with one."
        )
    return notes


def metric_rows(run: Run) -> list[dict[str, Any]]:
    """A row per metric that some variant has: its name, a value per variant, the best ones, its definition.

    The core metrics come first, in their order.
    """
    names = list(dict.fromkeys(name for variant in run.variants for name in variant.metrics))
    names.sort(key=lambda name: CORE.index(name) if name in CORE else len(CORE))
    rows = []
    for name in names:
        values = {variant.name: variant.metrics.get(name) for variant in run.variants}
        if any(value is not None for value in values.values()):
            best = units.better(name, values)
            reasons = {variant.name: str(variant.undefined.get(name, "")) for variant in run.variants}
            cells = [
                {
                    "text": units.metric(name, value),
                    "best": key in best,
                    "series": isinstance(value, list | dict),
                    "reason": reasons[key] if value is None else "",
                }
                for key, value in values.items()
            ]
            rows.append({"name": name, "core": name in CORE, "cells": cells, "definition": definition(run, name)})
    return rows


def definition(run: Run, name: str) -> str:
    """A metric's definition, as the first variant that has one states it."""
    return next((str(variant.definitions[name]) for variant in run.variants if name in variant.definitions), "")
