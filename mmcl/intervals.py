"""How sure a run's metrics are: intervals of every variant, means over its repeats, tests between variants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcl.evaluation.bootstrap import METRICS, draw
from mmcl.evaluation.matrix import Matrix
from mmcl.evaluation.repeats import RunDraws, summarise
from mmcl.evaluation.rows import rows_behind
from mmcl.evaluation.uncertainty import estimate
from mmcl.files import read_json, write_json

SUMMARY = "summary.json"


def write_intervals(folder: Path, homes: Mapping[str, Path]) -> None:
    """Add `intervals` to the `metrics.json` of every finished variant, and write the run's `summary.json`.

    Args:
        folder: of the run.
        homes: where each variant's matrix lies.

    Raises:
        UserError: an answer file of the run is missing or broken.
    """
    groups: dict[str, list[RunDraws]] = {}
    for name, head in read_json(folder / "run.json")["variants"].items():
        scored = [folder / stage["folder"] for stage in head["stages"] if stage["scored"]]
        path = homes[name] / "metrics.json" if name in homes else None
        if path is None or not path.is_file():
            continue
        matrix = Matrix.read(homes[name] / "matrix.json")
        if len(matrix.stages) < len(scored):
            continue  # it was stopped; half a stream has metrics of its own, which no other run can be compared with
        run = _run(folder, name, head, scored, matrix)
        groups.setdefault(_repeat(head, name)["group"], []).append(run)
        found = {metric: estimate([run.draws], metric) for metric in METRICS}
        intervals = {metric: each.to_dict() for metric, each in found.items() if each is not None}
        write_json(path, {**read_json(path), "intervals": intervals})
    write_json(folder / SUMMARY, summarise(groups))


def _run(folder: Path, name: str, head: Mapping[str, Any], scored: list[Path], matrix: Matrix) -> RunDraws:
    def path(row: int, column: int) -> Path:
        stage = folder / head["row0"] if row < 0 else scored[row]
        return stage / "predictions" / f"{matrix.tasks[column]}.jsonl"

    repeat = _repeat(head, name)
    return RunDraws(name, repeat["seed"], repeat["order"], draw(matrix, rows_behind(matrix, path)))


def _repeat(head: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Which of a variant's repeats it is; runs of earlier versions do not say, and had none."""
    found: Mapping[str, Any] = head.get("repeat") or {"group": name, "seed": None, "order": None}
    return found
