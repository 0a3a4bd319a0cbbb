"""Variants side by side: what each scored, forgot and took. With encoders as variants: which one forgets least?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmcl.report import units
from mmcl.report.charts import CHARACTER, Chart, Line, Point, colour, nice_ticks, shape, short, spread_labels
from mmcl.report.run import Run, Variant
from mmcl.report.summary import averages, front

WIDTH, HEIGHT, TOP, BOTTOM = 520, 300, 14, 44
LABEL_STEP = 15
AS_IT_IS = "the recipe as it is"


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
    Aspect("Time", _seconds, units.duration),
)


def comparison(
    run: Run, slots: Mapping[str, int], changes: Mapping[str, list[tuple[str, str]]]
) -> dict[str, Any] | None:
    """Table and chart of at least two variants with scores; None where there are fewer.

    Args:
        run: to compare the variants of.
        slots: colour and marker of each variant.
        changes: what each overrides in the recipe.
    """
    drawn = [variant for variant in run.variants if variant.matrix]
    if len(drawn) < 2:
        return None
    values = {aspect.name: [aspect.of(variant) for variant in drawn] for aspect in ASPECTS}
    shown = [aspect for aspect in ASPECTS if any(value is not None for value in values[aspect.name])]
    by_methods = any(variant.methods != drawn[0].methods for variant in drawn)
    rows = []
    for place, variant in enumerate(drawn):
        cells = []
        for aspect in shown:
            value = values[aspect.name][place]
            known = [aspect.better * each for each in values[aspect.name] if each is not None]
            best = bool(aspect.better) and value is not None and aspect.better * value == max(known)
            cells.append({"text": aspect.show(value), "exact": units.exact(value), "best": best})
        what = ", ".join(f"{path} = {text}" for path, text in changes.get(variant.name, []))
        if by_methods:
            what = ", ".join(filter(None, [", ".join(method.name for method in variant.methods), what]))
        rows.append({"name": variant.name, "slot": slots[variant.name], "what": what or AS_IT_IS, "cells": cells})
    names = [aspect.name for aspect in shown]
    return {"columns": names, "rows": rows, "chart": _scatter(drawn, slots), "front": front(run)}


def _scatter(variants: list[Variant], slots: Mapping[str, int]) -> Chart | None:
    """Accuracy upwards, forgetting to the right: the best stand top left."""
    places = [(v, x, y) for v in variants if (x := _forgetting(v)) is not None and (y := _accuracy(v)) is not None]
    if len(places) < 2:
        return None
    low, high = min(0.0, *(x for _, x, _ in places)), max(0.05, *(x for _, x, _ in places))
    step = nice_ticks(high - low)[1]
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    left, bottom = 52, HEIGHT - BOTTOM
    right = WIDTH - 22 - max(len(short(variant.name)) for variant, _, _ in places) * CHARACTER

    def x_of(value: float) -> float:
        return round(left + (right - left) * (value / step - first) / (last - first), 1)

    def y_of(value: float) -> float:
        return round(bottom - (bottom - TOP) * value, 1)

    labels = spread_labels([y_of(y) for _, _, y in places], LABEL_STEP, TOP, bottom)
    lines = []
    for index, (variant, x, y) in enumerate(places):
        told = f"{variant.name}: {units.percent(y)} accuracy, {_points(x)} forgotten"
        point = Point(x_of(x), y_of(y), told, False)
        label = (point.x + 10, labels[index], point.y, short(variant.name)) if labels else None
        slot = slots[variant.name]
        lines.append(Line(variant.name, colour(slot), shape(slot), "", "", (point,), label))
    return Chart(
        title="Average accuracy after the last stage (up) against forgetting (right)",
        description="; ".join(line.points[0].title for line in lines),
        width=WIDTH,
        height=HEIGHT,
        right=round(right, 1),
        bottom=bottom,
        left=left,
        top=TOP,
        x_ticks=tuple(
            (x_of(place * step), f"{100 * place * step:g}".replace("-", units.MINUS))
            for place in range(first, last + 1)
        ),
        y_ticks=tuple((y_of(share), units.percent(share, 0)) for share in (0, 0.25, 0.5, 0.75, 1)),
        x_title="forgetting (FM), percentage points",
        lines=tuple(lines),
    )
