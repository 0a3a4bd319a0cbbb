"""A run as the document that `mmcl report RUN --json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcl.report.cells import CellInfo
from mmcl.report.routing import routing
from mmcl.report.run import read_run
from mmcl.report.summary import front, sampling

COST_KEYS = (
    "seconds",
    "evaluation_seconds",
    "tokens",
    "image_tokens",
    "encoder_parameters",
    "trainable_parameters",
    "stored_parameters",
    "checkpoint_bytes",
    "memory_bytes",
    "peak_rss_bytes",
)
"""What the document says of each stage's cost; null where a stage did not record it."""


def document(folder: Path) -> dict[str, Any]:
    """A run as JSON types, the same keys for every variant; an unfinished run as far as it got.

    `matrix[i][j]` is the score in [0, 1] on task j after stage i, None where it was not measured. `cells[i][j]` says of
    how many `questions` `n` were asked, how many of these answers were `reused` from earlier stages, and the 95 %
    `interval` where not all were asked; `notes` is what a reader of the scores has to know.
    `intervals` are those of the metrics over test questions. `summary` has the means of each variant over its seeds and
    orders and the tests between variants, null until the run is finished.
    `front` names the variants that no other one beats in accuracy, learning and forgetting at once.
    `probes`, `losses`, `edits`, `knowledge` and `curves` are what was measured beside it, `anatomy` what `mmcl anatomy`
    found; null where nothing was.

    Raises:
        UserError: naming file and line, if the folder is no run or a file in it is broken.
    """
    run = read_run(Path(folder))
    variants = {}
    for variant in run.variants:
        taken = routing(variant)
        variants[variant.name] = {
            "tasks": list(variant.tasks),
            "stages": [stage.name for stage in variant.row_stages],
            "matrix": [list(row) for row in variant.matrix],
            "row0": None if variant.row0 is None else list(variant.row0),
            "cells": [_cells(variant.tasks, stage.cells) for stage in variant.row_stages],
            "row0_cells": None if variant.row0 is None else _cells(variant.tasks, variant.row0_cells),
            "notes": sampling(run),
            "metrics": dict(variant.metrics),
            "intervals": dict(variant.intervals),
            "definitions": dict(variant.definitions),
            "cost": [
                {"stage": stage.name, **{key: stage.cost.get(key) for key in COST_KEYS}} for stage in variant.stages
            ],
            "routing": None if taken is None else taken.to_dict(),
            **variant.beside.to_dict(),
            "anatomy": None if variant.anatomy is None else dict(variant.anatomy),
        }
    summary = None if run.summary is None else dict(run.summary.document)
    return {"run": run.name, "variants": variants, "front": front(run), "summary": summary}


def _cells(tasks: Sequence[str], cells: Mapping[str, CellInfo]) -> list[dict[str, Any] | None]:
    return [cells[task].to_dict() if task in cells else None for task in tasks]
