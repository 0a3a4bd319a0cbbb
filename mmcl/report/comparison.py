"""Variants side by side: what each scored, forgot and took. With encoders as variants: which one forgets least?

Runs of one variant with other seeds or orders stand in one row, with their means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcl.report import units
from mmcl.report.charts import CHARACTER, Chart, Line, Point, colour, nice_ticks, shape, short, spread_labels
from mmcl.report.csvs import csv_link
from mmcl.report.run import Run, Variant
from mmcl.report.summary import averages, not_beaten

WIDTH, HEIGHT, TOP, BOTTOM = 520, 300, 14, 44
LABEL_STEP = 15
AS_IT_IS = "the recipe as it is"


@dataclass(frozen=True, slots=True)
class Side:
    """A variant with its runs that have scores; `slot` is its colour and marker."""

    name: str
    runs: Sequence[Variant]
    slot: int


@dataclass(frozen=True, slots=True)
class Aspect:
    """One column: what it says of a variant, how to print it, and which end is better (0: neither)."""

    name: str
    of: Callable[[Variant], float | None]
    show: Callable[[float | None], str]
    better: int = 0


def _forgetting(variant: Variant) -> float | None:
    value = variant.metrics.get("FM")
    return float(value) if isinstance(value, int | float) else None


def _learning(variant: Variant) -> float | None:
    value = variant.metrics.get("MFT")
    return float(value) if isinstance(value, int | float) else None


def _points(value: float | None) -> str:
    return units.NONE if value is None else f"{units.cell(value)} pts"


def _accuracy(variant: Variant) -> float | None:
    return averages(variant)[-1] if variant.matrix else None


def _last(key: str) -> Callable[[Variant], float | None]:
    return lambda variant: next((s.cost[key] for s in reversed(variant.stages) if s.cost.get(key) is not None), None)


def _seconds(variant: Variant) -> float | None:
    """Training and evaluation of all stages; stages that variants share are told with each of them."""
    spent = [s.cost.get("seconds", 0.0) + s.cost.get("evaluation_seconds", 0.0) for s in variant.stages]
    return sum(spent) if spent else None


ASPECTS = (
    Aspect("Average accuracy", _accuracy, units.percent, 1),
    Aspect("Learned (MFT)", _learning, units.percent, 1),
    Aspect("Forgetting (FM)", _forgetting, _points, -1),
    Aspect("Visual tokens per image", _last("image_tokens"), units.count),
    Aspect("Encoder parameters", _last("encoder_parameters"), units.count),
    Aspect("Trained and kept", _last("stored_parameters"), units.count),
    Aspect("Kept on disk", _last("checkpoint_bytes"), units.size),
    Aspect("Time", _seconds, units.duration),
)

AXES = {
    "Forgetting (FM)": "forgetting (FM), percentage points",
    "Trained and kept": "parameters that were trained and are kept",
    "Kept on disk": "bytes of the last checkpoint, remembered samples included",
    "Time": "seconds of training and evaluation, all stages",
}
"""Aspects that accuracy is drawn against, with the axis's title: less of each is better."""


def comparison(
    run: Run, slots: Mapping[str, int], changes: Mapping[str, list[tuple[str, str]]]
) -> dict[str, Any] | None:
    """Table and charts of at least two variants with scores; None where there are fewer.

    Args:
        run: to compare the variants of.
        slots: colour and marker of each variant.
        changes: what each overrides in the recipe.
    """
    sides = _sides(run, slots)
    if len(sides) < 2:
        return None
    values = {aspect.name: [_mean(aspect, side) for side in sides] for aspect in ASPECTS}
    shown = [aspect for aspect in ASPECTS if any(value is not None for value in values[aspect.name])]
    by_methods = any(side.runs[0].methods != sides[0].runs[0].methods for side in sides)
    rows = []
    for place, side in enumerate(sides):
        cells = []
        for aspect in shown:
            value = values[aspect.name][place]
            known = [aspect.better * each for each in values[aspect.name] if each is not None]
            best = bool(aspect.better) and value is not None and aspect.better * value == max(known)
            cells.append({"text": aspect.show(value), "exact": units.exact(value), "best": best})
        what = ", ".join(f"{path} = {text}" for path, text in changes.get(side.name, []))
        if by_methods:
            what = ", ".join(filter(None, [", ".join(method.name for method in side.runs[0].methods), what]))
        rows.append({"name": side.name, "slot": side.slot, "what": what or AS_IT_IS, "cells": cells})
    names = [aspect.name for aspect in shown]
    core = zip(*(values[name] for name in ("Average accuracy", "Learned (MFT)", "Forgetting (FM)")), strict=True)
    charts = [_scatter(sides, values["Average accuracy"], values[name], name) for name in AXES]
    return {
        "columns": names,
        "rows": rows,
        "charts": [chart for chart in charts if chart is not None],
        "front": not_beaten({side.name: each for side, each in zip(sides, core, strict=True)}),
        "csv": csv_link([("variant", *names), *_exact_rows(sides, [values[name] for name in names])]),
    }


def _sides(run: Run, slots: Mapping[str, int]) -> list[Side]:
    """Each variant with its runs; a run that the summary does not know stands alone."""
    drawn = {variant.name: variant for variant in run.variants if variant.matrix}
    groups = (
        [(group.name, [name for name in group.runs if name in drawn]) for group in run.summary.groups]
        if (run.summary is not None)
        else []
    )
    told = {name for _, names in groups for name in names}
    groups += [(name, [name]) for name in drawn if name not in told]
    return [Side(name, [drawn[each] for each in runs], slots[runs[0]]) for name, runs in groups if runs]


def _mean(aspect: Aspect, side: Side) -> float | None:
    """Of the side's runs; None where one does not have it."""
    values = [aspect.of(variant) for variant in side.runs]
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _exact_rows(sides: Sequence[Side], columns: Sequence[Sequence[float | None]]) -> list[tuple[str | float, ...]]:
    cells = [["" if value is None else value for value in row] for row in zip(*columns, strict=True)]
    return [(side.name, *row) for side, row in zip(sides, cells, strict=True)]


def _scatter(
    sides: Sequence[Side], accuracy: Sequence[float | None], other: Sequence[float | None], name: str
) -> Chart | None:
    """Accuracy upwards, something of which less is better to the right: the best stand top left."""
    places = [
        (side, x, y) for side, x, y in zip(sides, other, accuracy, strict=True) if x is not None and y is not None
    ]
    if len(places) < 2 or len({side.name for side, _, _ in places}) < 2:
        return None
    show = next(aspect.show for aspect in ASPECTS if aspect.name == name)
    points = name == "Forgetting (FM)"
    low, high = min(0.0, *(x for _, x, _ in places)), max(0.05 if points else 1.0, *(x for _, x, _ in places))
    step = nice_ticks(high - low)[1]
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    left, bottom = 52, HEIGHT - BOTTOM
    right = WIDTH - 22 - max(len(short(side.name)) for side, _, _ in places) * CHARACTER

    def x_of(value: float) -> float:
        return round(left + (right - left) * (value / step - first) / (last - first), 1)

    def y_of(value: float) -> float:
        return round(bottom - (bottom - TOP) * value, 1)

    labels = spread_labels([y_of(y) for _, _, y in places], LABEL_STEP, TOP, bottom)
    lines = []
    for index, (side, x, y) in enumerate(places):
        told = f"{side.name}: {units.percent(y)} accuracy, {name[0].lower()}{name[1:]} {show(x)}"
        point = Point(x_of(x), y_of(y), told, False)
        label = (point.x + 10, labels[index], point.y, short(side.name)) if labels else None
        lines.append(Line(side.name, colour(side.slot), shape(side.slot), "", "", (point,), label))

    def tick(value: float) -> str:
        return f"{100 * value:g}".replace("-", units.MINUS) if points else units.count(value)

    return Chart(
        title=f"Average accuracy (up) against {name[0].lower()}{name[1:]} (right)",
        description="; ".join(line.points[0].title for line in lines),
        width=WIDTH,
        height=HEIGHT,
        right=round(right, 1),
        bottom=bottom,
        left=left,
        top=TOP,
        x_ticks=tuple((x_of(place * step), tick(place * step)) for place in range(first, last + 1)),
        y_ticks=tuple((y_of(share), units.percent(share, 0)) for share in (0, 0.25, 0.5, 0.75, 1)),
        x_title=AXES[name],
        lines=tuple(lines),
    )
