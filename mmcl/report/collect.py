"""A run as the document that `mmcl report RUN --json` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmcl.report.routing import routing
from mmcl.report.run import read_run

COST_KEYS = (
    "seconds",
    "tokens",
    "trainable_parameters",
    "stored_parameters",
    "checkpoint_bytes",
    "memory_bytes",
    "peak_rss_bytes",
)
"""What the document says of each stage's cost; null where a stage did not record it."""


def document(folder: Path) -> dict[str, Any]:
    """A run as JSON types, the same keys for every variant; an unfinished run as far as it got.

    `matrix[i][j]` is the score in [0, 1] on task j after stage i, None where it was not measured.

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
            "metrics": dict(variant.metrics),
            "definitions": dict(variant.definitions),
            "cost": [
                {"stage": stage.name, **{key: stage.cost.get(key) for key in COST_KEYS}} for stage in variant.stages
            ],
            "routing": None if taken is None else taken.to_dict(),
        }
    return {"run": run.name, "variants": variants}
