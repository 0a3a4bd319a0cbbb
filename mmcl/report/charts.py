"""Line charts as geometry; the page's template draws them as inline SVG."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

COLOURS = 8
"""How many colours the stylesheet has; further series differ by their markers."""
SHAPES = ("circle", "square", "diamond", "triangle")

WIDTH, HEIGHT = 520, 300
TOP, BOTTOM = 14, 44
CHARACTER = 7.0
"""Mean width of a label's character, at the stylesheet's 12 px, with room for wider fonts."""
LABEL_STEP = 15
"""Smallest distance between two direct labels."""


@dataclass(frozen=True, slots=True)
class Series:
    """What to draw: a value per place on the x axis, None where there is none.

    Attributes:
        name: for the legend and the direct label.
        slot: which colour and marker.
        values: in the y axis's unit.
        start: places before it are drawn dashed (a task that is not learned yet).
    """

    name: str
    slot: int
    values: tuple[float | None, ...]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """A marker with its tooltip; hollow before the series starts."""

    x: float
    y: float
    title: str
    hollow: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A drawn series; `label` is None where there is no room for a direct label."""

    name: str
    colour: int
    shape: str
    dashed: str
    solid: str
    points: tuple[Point, ...]
    label: tuple[float, float, float, str] | None
    """(x, y of the text, y of the line's end, text)."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart in a viewBox of width x height; ticks are (place, label)."""

    title: str
    description: str
    width: int
    height: int
    right: float
    bottom: float
    left: float
    top: float
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_title: str
    lines: tuple[Line, ...]


def colour(slot: int) -> int:
    """Which of the stylesheet's colours a slot has."""
    return slot % COLOURS


def shape(slot: int) -> str:
    """A slot's marker: colour and marker together are unique for the first 32 slots."""
    return SHAPES[(slot + slot // COLOURS) % len(SHAPES)]


def line_chart(
    title: str,
    series: Sequence[Series],
    stages: Sequence[str],
    *,
    top: float | None = None,
    unit: float = 1.0,
    show: Callable[[float], str],
    direct: bool = True,
    width: int = WIDTH,
    height: int = HEIGHT,
    x_title: str = "after stage",
) -> Chart:
    """Lay a chart out.

    Args:
        title: names what the y axis shows.
        series: the lines; all values are >= 0.
        stages: names of the places on the x axis.
        top: the end of the y axis; by default a round number above the largest value.
        unit: ticks are round multiples of it (60 for seconds that are shown as minutes).
        show: a value with its unit, for ticks and tooltips.
        direct: label the lines at their ends (where they have room).
        width: of the viewBox, in px at scale 1.
        height: of the viewBox.
        x_title: names what the x axis shows.
    """
    values = [value for line in series for value in line.values if value is not None]
    ticks = [tick * unit for tick in nice_ticks((top if top is not None else max(values, default=unit)) / unit)]
    y_labels = [re.sub(r"\.0+(?=\D|$)", "", show(tick)) for tick in ticks]
    left = round(14 + max(map(len, y_labels)) * (CHARACTER + 1))
    highest = ticks[-1]
    bottom = height - BOTTOM
    direct = direct and (len(series) - 1) * LABEL_STEP <= bottom - TOP
    longest = max((len(short(line.name)) for line in series), default=0)
    overhang = len(short(stages[-1])) * CHARACTER / 2 + 4 if stages else 0
    right = width - max(22 + longest * CHARACTER if direct else 14, overhang)
    step = (right - left) / max(len(stages) - 1, 1)

    def x(place: int) -> float:
        return round(left + step * place if len(stages) > 1 else (left + right) / 2, 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - TOP) * min(value / highest, 1.0), 1)

    ends = [(index, y(last)) for index, line in enumerate(series) if (last := _last(line.values)) is not None]
    spread = spread_labels([end for _, end in ends], LABEL_STEP, TOP, bottom) if direct else None
    labels = {index: place for (index, _), place in zip(ends, spread or (), strict=False)}

    lines = []
    for index, line in enumerate(series):
        points = tuple(
            Point(x(place), y(value), f"{line.name}, {stages[place]}: {show(value)}", place < line.start)
            for place, value in enumerate(line.values)
            if value is not None
        )
        label = (right + 10, labels[index], points[-1].y, short(line.name)) if index in labels else None
        before = [(x(i), None if v is None else y(v)) for i, v in enumerate(line.values) if i <= line.start]
        after = [(x(i), None if v is None else y(v)) for i, v in enumerate(line.values) if i >= line.start]
        lines.append(Line(line.name, colour(line.slot), shape(line.slot), _path(before), _path(after), points, label))
    fits = max((len(short(stage)) for stage in stages), default=0) * CHARACTER + 8 <= step
    every = math.ceil(len(stages) * 22 / (right - left))
    return Chart(
        title=title,
        description="; ".join(_describe(line, stages, show) for line in series),
        width=width,
        height=height,
        right=round(right, 1),
        bottom=bottom,
        left=left,
        top=TOP,
        x_ticks=tuple(
            (x(place), short(stage) if fits or len(stages) == 1 else _number(stage, place))
            for place, stage in enumerate(stages)
            if fits or place % every == 0
        ),
        y_ticks=tuple((y(tick), label) for tick, label in zip(ticks, y_labels, strict=True)),
        x_title=x_title,
        lines=tuple(lines),
    )


def nice_ticks(top: float) -> list[float]:
    """Four to six round numbers from 0 to at least `top`."""
    if top <= 0:
        return [0.0, 1.0]
    raw = top / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.9999)
    return [index * step for index in range(math.ceil(top / step - 1e-9) + 1)]


def spread_labels(wanted: Sequence[float], step: float, low: float, high: float) -> list[float] | None:
    """Move labels as little as needed so that neighbours are `step` apart; None if they don't fit."""
    if (len(wanted) - 1) * step > high - low:
        return None
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = list(wanted)
    for earlier, later in itertools.pairwise(order):
        places[later] = max(places[later], places[earlier] + step)
    limit = high
    for index in reversed(order):
        places[index] = min(places[index], limit)
        limit = places[index] - step
    return [round(place, 1) for place in places]


def _path(places: Sequence[tuple[float, float | None]]) -> str:
    """Path data through the places; a missing value breaks the line."""
    parts, pen = [], "M"
    for x, y in places:
        if y is None:
            pen = "M"
        else:
            parts.append(f"{pen}{x:g} {y:g}")
            pen = "L"
    return "".join(parts) if "L" in "".join(parts) else ""


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def short(text: str, limit: int = 16) -> str:
    """A name with room for it in a chart."""
    return text if len(text) <= limit else f"{text[: limit - 1]}\u2026"


def _number(stage: str, place: int) -> str:
    head = stage.split("-", 1)[0]
    return str(int(head)) if head.isascii() and head.isdigit() else str(place)


def _describe(line: Series, stages: Sequence[str], show: Callable[[float], str]) -> str:
    values = [(stages[place], value) for place, value in enumerate(line.values) if value is not None]
    return f"{line.name}: " + (", ".join(f"{show(value)} after {stage}" for stage, value in values) or "not measured")
