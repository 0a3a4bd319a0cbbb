"""Stacked bars as geometry; the page's template draws them as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmcl.report import units
from mmcl.report.charts import CHARACTER, nice_ticks, short

WIDTH = 560
ROW, BAR = 34, 20
TOP, BOTTOM = 8, 42
LABEL = 20
"""Most characters of a bar's name."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a bar; `slot` is its place in the legend."""

    slot: int
    x: float
    width: float
    title: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar with its name on the left and its total on the right."""

    name: str
    y: float
    segments: tuple[Segment, ...]
    end: float
    total: str


@dataclass(frozen=True, slots=True)
class Bars:
    """A chart in a viewBox of width x height; ticks are (place, label)."""

    title: str
    description: str
    width: int
    height: int
    left: float
    bottom: float
    top: float
    bar: int
    ticks: tuple[tuple[float, str], ...]
    x_title: str
    bars: tuple[Bar, ...]


def stacked(title: str, names: Sequence[str], parts: Sequence[str], values: Sequence[Sequence[float]]) -> Bars:
    """Lay bars out, one below the other.

    Args:
        title: names what the chart shows.
        names: of the bars.
        parts: of the pieces, in the order in which they stand.
        values: [bars][parts], in [0, 1], shown as percentage points.
    """
    totals = [sum(row) for row in values]
    # A quarter of a point keeps an axis without any loss from being empty.
    ticks = nice_ticks(100 * max([*totals, 0.0025]))
    left = round(16 + max((len(short(name, LABEL)) for name in names), default=0) * CHARACTER)
    right = WIDTH - 50
    scale = (right - left) / (ticks[-1] / 100)
    bars = []
    for place, (name, row, total) in enumerate(zip(names, values, totals, strict=True)):
        x = float(left)
        segments = []
        for slot, (part, value) in enumerate(zip(parts, row, strict=True)):
            if value > 0:
                said = f"{name}, {part}: {units.cell(value)} points, {units.percent(value / total, 0)} of the loss"
                segments.append(Segment(slot, round(x, 1), round(value * scale, 1), said))
                x += value * scale
        y = TOP + place * ROW + (ROW - BAR) / 2
        bars.append(Bar(short(name, LABEL), y, tuple(segments), round(x, 1), units.cell(total)))
    bottom = TOP + len(names) * ROW
    return Bars(
        title=title,
        description="; ".join(_describe(*each, parts) for each in zip(names, values, totals, strict=True)),
        width=WIDTH,
        height=bottom + BOTTOM,
        left=left,
        bottom=bottom,
        top=TOP,
        bar=BAR,
        ticks=tuple((round(left + tick / 100 * scale, 1), f"{tick:g}") for tick in ticks),
        x_title="points lost",
        bars=tuple(bars),
    )


def _describe(name: str, row: Sequence[float], total: float, parts: Sequence[str]) -> str:
    pieces = ", ".join(f"{part} {units.cell(value)}" for part, value in zip(parts, row, strict=True) if value > 0)
    return f"{name}: {units.cell(total)} points" + (f", of these {pieces}" if pieces else "")
