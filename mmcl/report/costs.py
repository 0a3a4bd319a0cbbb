"""What the stages cost: a table, and how the costs grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcl.report import units
from mmcl.report.charts import Chart, Series, line_chart
from mmcl.report.run import Run


@dataclass(frozen=True, slots=True)
class Column:
    """One cost: its key in a manifest, its heading, how to print it, and whether stages add up."""

    key: str
    name: str
    show: Callable[[float | None], str]
    adds: bool = False


COLUMNS = (
    Column("seconds", "Time", units.duration, adds=True),
    Column("evaluation_seconds", "Evaluation", units.duration, adds=True),
    Column("steps", "Steps", units.count, adds=True),
    Column("tokens", "Tokens", units.count, adds=True),
    Column("flops", "FLOPs", units.count, adds=True),
    Column("trainable_parameters", "Trainable parameters", units.count),
    Column("stored_parameters", "Stored parameters", units.count),
    Column("checkpoint_bytes", "Checkpoint", units.size, adds=True),
    Column("expert_bytes", "Experts", units.size),
    Column("memory_bytes", "Replay memory", units.size),
    Column("peak_rss_bytes", "Peak RAM", units.size),
)
SMALL = (340, 220)
CHARTS = ("seconds", "evaluation_seconds", "stored_parameters", "checkpoint_bytes", "memory_bytes", "peak_rss_bytes")


def columns(run: Run) -> list[Column]:
    """The costs that some stage recorded; those of experts and memory only where they are not all 0."""
    recorded: dict[str, float] = {}
    for variant in run.variants:
        for stage in variant.stages:
            for key, value in stage.cost.items():
                recorded[key] = max(recorded.get(key, 0.0), value)
    optional = ("expert_bytes", "memory_bytes", "flops")
    return [
        column for column in COLUMNS if column.key in recorded and (recorded[column.key] or column.key not in optional)
    ]


def cost_table(run: Run) -> dict[str, Any]:
    """Headings, and for each variant a row per finished stage and a total of what adds up."""
    shown = columns(run)
    groups = []
    for variant in run.variants:
        rows = [
            (stage.label, [(column.show(stage.cost.get(column.key)), _exact(column, stage.cost)) for column in shown])
            for stage in variant.stages
        ]
        sums = {
            column.key: sum(stage.cost.get(column.key, 0.0) for stage in variant.stages)
            for column in shown
            if column.adds
        }
        total = [(column.show(sums[column.key]) if column.adds else "", _exact(column, sums)) for column in shown]
        if rows:
            groups.append({"variant": variant.name, "rows": rows, "total": total if len(rows) > 1 else []})
    return {"columns": [column.name for column in shown], "groups": groups}


def cost_rows(run: Run) -> list[Sequence[str | float | None]]:
    """All costs of all stages, as recorded."""
    keys = list(dict.fromkeys(key for variant in run.variants for stage in variant.stages for key in stage.cost))
    rows = [
        (variant.name, stage.label, *(stage.cost.get(key) for key in keys))
        for variant in run.variants
        for stage in variant.stages
    ]
    return [("variant", "stage", *keys), *rows]


def _exact(column: Column, cost: Mapping[str, float]) -> str:
    return units.exact(cost[column.key]) if column.key in cost else ""


def cost_charts(run: Run, slots: Mapping[str, int]) -> list[Chart]:
    """Small charts, one cost each, one line per variant, over the stages."""
    drawn = [variant for variant in run.variants if variant.stages]
    longest = max((variant.stages for variant in drawn), key=len, default=())
    if len(longest) < 2:
        return []
    labels = [stage.label for stage in longest]
    if any([stage.label for stage in variant.stages] != labels[: len(variant.stages)] for variant in drawn):
        labels = [str(place + 1) for place in range(len(labels))]
    charts = []
    for column in columns(run):
        if column.key in CHARTS:
            series = [
                Series(variant.name, slots[variant.name], tuple(stage.cost.get(column.key) for stage in variant.stages))
                for variant in drawn
            ]
            name = f"{column.name} per stage" if column.adds else column.name
            highest = max((value for line in series for value in line.values if value is not None), default=0.0)
            unit = next((u for u in (3600.0, 60.0) if column.key.endswith("seconds") and highest >= 2 * u), 1.0)
            chart = line_chart(
                name, series, labels, show=column.show, unit=unit, direct=False, width=SMALL[0], height=SMALL[1]
            )
            charts.append(chart)
    return charts
