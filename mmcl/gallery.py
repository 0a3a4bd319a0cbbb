"""Thumbnails of the test images whose answers were lost, for the report's gallery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcl.data.types import Sample, Task
from mmcl.evaluation.predictions import read_predictions
from mmcl.stages import Stage, rows_of

SIZE = 128
MOST = 64


def write_thumbnails(folder: Path, stages: Sequence[Stage], columns: Sequence[Task]) -> None:
    """Write `gallery/DIGEST.png` for up to 64 lost answers of each task.

    Args:
        folder: of the run.
        stages: of a finished variant.
        columns: the scored tasks, with their test questions.
    """
    rows = rows_of(stages)
    for task in columns:
        learned = next((stage for stage in rows if task.name in stage.tasks), rows[-1])
        if learned is rows[-1]:
            continue
        before, after = (
            read_predictions(folder / stage.folder / "predictions" / f"{task.name}.jsonl")
            for stage in (learned, rows[-1])
        )
        was = {row.id: score for row, score in before}
        lost = [row.id for row, score in after if (score or 0.0) < (was.get(row.id) or 0.0)]
        samples = {sample.id: sample for sample in task.test}
        for key in lost[:MOST]:
            write_images(folder, samples[key])


def write_images(folder: Path, sample: Sample) -> None:
    """Write the thumbnails of one question's images."""
    for image in sample.images:
        path = folder / "gallery" / f"{image.digest}.png"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            picture = image.open()
            picture.thumbnail((SIZE, SIZE))
            picture.save(path)
