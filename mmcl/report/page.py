"""The report as one self-contained HTML page: no script, no external resource, light and dark, fit for print."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmcl.report import anatomy, certainty, units
from mmcl.report.beside import curve_chart, curve_rows, grids
from mmcl.report.cells import CellInfo
from mmcl.report.charts import Chart, Series, colour, line_chart, shape
from mmcl.report.comparison import comparison
from mmcl.report.costs import cost_charts, cost_rows, cost_table
from mmcl.report.csvs import csv_link
from mmcl.report.gallery import PER_TASK, forgotten
from mmcl.report.heat import DARK, LIGHT, Shade, shade
from mmcl.report.routing import Routing, routing
from mmcl.report.run import Cell, Row, Run, Variant, read_run
from mmcl.report.summary import BEFORE, averages, metric_rows, sampling, summary

FEW = 2
"""Questions shown of each task where a run repeats another one."""


def write(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Raises:
        UserError: naming file and line, if the folder is no run or a file in it is broken.
    """
    target = Path(folder) / "report.html"
    page = render(read_run(Path(folder)))
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.write_text(page, encoding="utf-8")
    part.replace(target)  # a reader never sees half a page
    return target


def render(run: Run) -> str:
    """The page's HTML. Every text of the run is escaped by the template engine."""
    environment = Environment(
        loader=PackageLoader("mmcl.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=units.percent, plain=units.plain, lines=units.lines, count=units.exact)
    environment.filters.update(mark=shape, colour=colour)
    css = Markup(files(__package__).joinpath("style.css").read_text(encoding="utf-8"))  # our own file, not a run's text
    return environment.get_template("template.html").render(css=css, **view(run))


def view(run: Run) -> dict[str, Any]:
    """Everything that the template shows, ready to print."""
    tasks = list(dict.fromkeys(task for variant in run.variants for task in variant.tasks))
    names = [variant.name for variant in run.variants]
    taken = {variant.name: routing(variant) for variant in run.variants}
    # Variants get other colours than tasks: one colour means one thing on the whole page.
    slots = {name: len(tasks) + index for index, name in enumerate(names)}
    # Repeats of a variant are folded away: its first run stands for them, beside the means of all.
    brief = replace(run, variants=run.firsts)
    metrics = metric_rows(brief)
    average = _average_chart(run, slots)
    return {
        "run": run,
        "several": len(names) > 1,
        "firsts": [variant.name for variant in run.firsts],
        "headline": headline(run),
        "facts": facts(run),
        "environment": [(key, units.flat(value)) for key, value in run.environment.items() if value not in (None, "")],
        "variants": [
            {
                "name": variant.name,
                "first": variant in run.firsts,
                "tasks": variant.tasks,
                "slot": slots[variant.name],
                "methods": [(method, units.flat(method.options)) for method in variant.methods],
                "oracle": variant.oracle,
                "changes": _changes(run, variant.name),
                "summary": summary(variant),
                "figures": _figures(variant, taken[variant.name]),
                "heat": heat_map(variant),
                "csv": csv_link(_matrix_rows(variant)),
                "chart": _task_chart(variant, tasks),
                "routing": _confusion(taken[variant.name]),
                "gallery": forgotten(variant, run.folder, limit=PER_TASK if variant in run.firsts else FEW),
                "anatomy": _anatomy(variant, run.folder),
                "behind": len(variant.rows) > 1,
                **_beside(variant, tasks),
            }
            for variant in run.variants
        ],
        "legend": [(task, index) for index, task in enumerate(tasks)],
        "variant_legend": [(name, slots[name]) for name in names],
        "average": average,
        "average_csv": csv_link(_average_rows(run)),
        "comparison": comparison(run, slots, {name: _changes(run, name) for name in names}),
        "certainty": certainty.view(run.summary),
        "reused": any(cell.taken_over for variant in run.variants for cell in variant.all_cells),
        "sampling": sampling(run),
        "ramp": [shade_style(shade(step / 10), shade(step / 10, DARK)) for step in range(11)],
        "metrics": [row for row in metrics if row["core"]],
        "more_metrics": [row for row in metrics if not row["core"]],
        "metrics_csv": csv_link(_metrics_rows(run)),
        "warnings": list(dict.fromkeys(text for variant in run.variants for text in variant.warnings)),
        "undefined": _undefined(run),
        "scoring": _scoring(run, tasks),
        "costs": cost_table(brief) | {"csv": csv_link(cost_rows(run))},
        "cost_charts": cost_charts(run, slots),
    }


def facts(run: Run) -> list[tuple[str, str]]:
    """Model, stream, seed and so on, as (name, text), from the resolved recipe."""
    model = _mapping(run.recipe.get("model"))
    language = _mapping(model.get("language"))
    lora = language.get("lora")
    rows = [
        ("Encoder", model.get("encoder")),
        ("Projector", model.get("projector")),
        ("Language model", language.get("weights") or model.get("vlm")),
        ("LoRA", lora if lora is not None or not language else "none"),
        ("Trained", model.get("train")),
        ("Stream", run.recipe.get("stream")),
        ("Seed", run.recipe.get("seed")),
    ]
    return [(name, units.flat(value)) for name, value in rows if value not in (None, "", [], {})]


def headline(run: Run) -> str:
    """The run in one line: the model's parts in the order of the data, the stream, the seed."""
    known = dict(facts(run))
    parts = [known[name] for name in ("Encoder", "Projector", "Language model") if name in known]
    stream = _mapping(run.recipe.get("stream")).get("name") or known.get("Stream", "")
    seed = f"seed {known['Seed']}" if "Seed" in known else ""
    return " \u00b7 ".join(text for text in (" \u2192 ".join(parts), stream, seed) if text)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _changes(run: Run, name: str) -> list[tuple[str, str]]:
    """What the variant overrides in the recipe, its methods apart (they are shown anyway)."""
    overrides = _mapping(_mapping(run.recipe.get("variants")).get(name))

    def walk(value: Any, path: str) -> list[tuple[str, str]]:
        if isinstance(value, Mapping) and "name" not in value:
            return [row for key, item in value.items() for row in walk(item, f"{path}.{key}" if path else str(key))]
        return [(path, units.flat(value))]

    return [row for row in walk(overrides, "") if row[0] and row[0] != "methods"]


# ------------------------------------------------------------------------------------------------------------- summary


def _figures(variant: Variant, taken: Routing | None) -> list[tuple[str, str, str]]:
    """The few large numbers: (value, name, unit)."""
    rows = []
    if variant.matrix:
        rows.append((units.cell(averages(variant)[-1]), "average accuracy", "%"))
    forgetting = variant.metrics.get("FM")
    if isinstance(forgetting, int | float):
        rows.append((units.cell(forgetting), "forgetting (FM)", "points"))
    if taken is not None and taken.accuracy is not None:
        rows.append((units.cell(taken.accuracy), "routing accuracy", "%"))
    return rows


# -------------------------------------------------------------------------------------------------------------- matrix


def shade_style(light: Shade, dark: Shade) -> str:
    """Both schemes' colours as custom properties; the stylesheet picks."""
    return f"--l:{light.fill};--li:{light.ink};--d:{dark.fill};--di:{dark.ink}"


def heat_map(variant: Variant) -> list[dict[str, Any]]:
    """Rows of the heat map, row 0 first, each cell with its text, tooltip and colours."""
    digits = 1 if len(variant.tasks) <= 10 else 0
    rows: list[tuple[str, int | None, Row, Mapping[str, CellInfo]]] = []
    if variant.row0 is not None:
        rows.append((BEFORE, None, variant.row0, variant.row0_cells))
    for index, (stage, row) in enumerate(zip(variant.row_stages, variant.matrix, strict=True)):
        rows.append((variant.rows[index], index, row, stage.cells))
    return [
        {
            "label": label,
            "before": index is None,
            "cells": [
                _cell(cell, f"{task} after {label}" if index is not None else f"{task} before training", digits)
                | {"learned": index is not None and variant.learned(task) == index}
                | (_known(cells[task], variant, digits) if task in cells and cell is not None else {})
                for task, cell in zip(variant.tasks, row, strict=True)
            ],
        }
        for label, index, row, cells in rows
    ] + (
        [{"label": "change since learned", "change": [_change(variant.change(task), digits) for task in variant.tasks]}]
        if any(variant.change(task) is not None for task in variant.tasks)
        else []
    )


def _matrix_rows(variant: Variant) -> list[Sequence[str | float | None]]:
    """The file `matrix.csv`."""
    before = [] if variant.row0 is None else [(BEFORE, *variant.row0)]
    after = [(label, *row) for label, row in zip(variant.rows, variant.matrix, strict=True)]
    return [("stage", *variant.tasks), *before, *after]


def _known(info: CellInfo, variant: Variant, digits: int) -> dict[str, Any]:
    """A mark for answers taken over, the interval, and more to say in the tooltip."""
    ends = "" if info.interval is None or digits == 0 else units.span(info.interval)
    return {"reused": info.taken_over, "span": ends, "notes": "; ".join(info.notes(variant.names))}


def _change(value: Cell, digits: int) -> tuple[str, bool]:
    return units.points(value, digits), value is not None and round(value, 3) < 0


PLAIN = {"reused": False, "span": "", "notes": ""}
"""A cell about which there is nothing more to say."""


def _cell(value: Cell, what: str, digits: int = 1) -> dict[str, Any]:
    if value is None:
        return {"text": None, "title": f"{what}: not measured", "style": "", **PLAIN}
    style = shade_style(shade(value, LIGHT), shade(value, DARK))
    return {"text": units.cell(value, digits), "title": f"{what}: {units.percent(value, 2)}", "style": style, **PLAIN}


def _beside(variant: Variant, tasks: list[str]) -> dict[str, Any]:
    tables, learning = grids(variant.beside), curve_chart(variant.name, variant.beside, tasks)
    return {
        "beside": tables,
        "learning": learning,
        "learning_csv": csv_link(curve_rows(variant.beside)),
        "shown_beside": bool(tables or learning),
    }


def _anatomy(variant: Variant, folder: Path) -> dict[str, Any] | None:
    found = anatomy.view(variant.anatomy, folder)
    if found is not None:
        found["confusion"]["rows"] = [
            (
                task,
                [
                    _cell(share, f"{task}: {count} of {total} answers belong to {name}")
                    | {"text": f"{count:,}", "own": name == task}
                    for share, count, total, name in cells
                ],
            )
            for task, cells in found["confusion"]["rows"]
        ]
    return found


def _confusion(taken: Routing | None) -> dict[str, Any] | None:
    if taken is None:
        return None
    rows = []
    for task, counts, own, accuracy in zip(taken.tasks, taken.counts, taken.own, taken.per_task, strict=True):
        total = sum(counts)
        cells = [
            _cell(count / total if total else None, f"{task}: {count} of {total} to {expert}")
            | {"learned": expert == own, "text": f"{count:,}"}
            for count, expert in zip(counts, taken.experts, strict=True)
        ]
        rows.append({"label": task, "cells": cells, "accuracy": units.percent(accuracy)})
    counted: list[Sequence[str | float | None]] = [("true task", *taken.experts)]
    counted += [(task, *counts) for task, counts in zip(taken.tasks, taken.counts, strict=True)]
    return {
        "experts": taken.experts,
        "rows": rows,
        "accuracy": units.percent(taken.accuracy),
        "stage": taken.stage,
        "csv": csv_link(counted),
    }


# -------------------------------------------------------------------------------------------------------------- charts


def _task_chart(variant: Variant, tasks: list[str]) -> Chart | None:
    if not variant.matrix:
        return None
    zero = variant.row0 is not None
    rows = ((variant.row0,) if variant.row0 is not None else ()) + variant.matrix
    series = []
    for column, task in enumerate(variant.tasks):
        learned = variant.learned(task)
        start = len(rows) if learned is None else learned + zero
        series.append(Series(task, tasks.index(task), tuple(row[column] for row in rows), start))
    stages = ((BEFORE,) if zero else ()) + variant.rows
    return line_chart(f"{variant.name}: score per task, %", series, stages, top=1.0, show=_percent)


def _average_chart(run: Run, slots: Mapping[str, int]) -> Chart | None:
    drawn = [variant for variant in run.variants if variant.matrix]
    if len(drawn) < 2:
        return None
    stages = max((variant.rows for variant in drawn), key=len)
    if any(variant.rows != stages[: len(variant.rows)] for variant in drawn):
        stages = tuple(str(place + 1) for place in range(len(stages)))  # other orders: count the stages
    series = []
    for first in run.firsts:
        repeats = [averages(variant) for variant in drawn if variant.group == first.group]
        if repeats:
            series.append(Series(first.group, slots[first.name], tuple(map(_mean, zip(*repeats, strict=False)))))
    return line_chart("Average accuracy of the tasks learned so far, %", series, stages, top=1.0, show=_percent)


def _mean(values: Sequence[Cell]) -> Cell:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _average_rows(run: Run) -> list[Sequence[str | float | None]]:
    rows = [
        (variant.name, label, value)
        for variant in run.variants
        for label, value in zip(variant.rows, averages(variant), strict=True)
    ]
    return [("variant", "after stage", "average accuracy"), *rows]


def _percent(value: float) -> str:
    return units.percent(value, 0 if round(value * 100, 1).is_integer() else 1)


# ------------------------------------------------------------------------------------------------------------- metrics


def _metrics_rows(run: Run) -> list[Sequence[str | float | None]]:
    """(variant, metric, of what, value): of which stage or task, where a metric has several values."""

    def leaves(value: Any, path: str) -> Iterator[tuple[str, float | None]]:
        if isinstance(value, Mapping):
            for key, each in value.items():
                yield from leaves(each, f"{path} {key}".strip())
        elif isinstance(value, list):
            for place, each in enumerate(value):
                yield from leaves(each, f"{path} {place + 1}".strip())
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield path, value

    rows = [
        (variant.name, name, where, number)
        for variant in run.variants
        for name, value in variant.metrics.items()
        for where, number in leaves(value, "")
    ]
    return [("variant", "metric", "of", "value"), *rows]


def _undefined(run: Run) -> list[tuple[str, str]]:
    """Metrics that no variant could compute, by the reason that the first one gives: (names, reason)."""
    reasons: dict[str, str] = {}
    for variant in run.variants:
        for name, reason in variant.undefined.items():
            if all(other.metrics.get(name) is None for other in run.variants):
                reasons.setdefault(name, str(reason))
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [(", ".join(group), reason) for reason, group in names.items()]


def _scoring(run: Run, tasks: list[str]) -> list[Any]:
    """How each task was scored, from the latest stage that scored it."""
    found = {}
    for variant in run.variants:
        for stage in variant.row_stages:
            found.update({task: cell for task, cell in stage.cells.items() if cell.metric})
    return [found[task] for task in tasks if task in found]
