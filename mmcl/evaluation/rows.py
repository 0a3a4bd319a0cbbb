"""The questions behind the cells of a matrix, from answer files with scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmcl.errors import UserError
from mmcl.evaluation.bootstrap import Row
from mmcl.evaluation.matrix import Matrix
from mmcl.evaluation.predictions import read_predictions
from mmcl.protocols import Prediction


def rows_behind(matrix: Matrix, path: Callable[[int, int], Path]) -> dict[tuple[int, int], list[Row]]:
    """The rows of every measured cell.

    Args:
        matrix: the scores.
        path: the answer file of a cell, given row and column; row -1 is row 0.

    Raises:
        UserError: an answer file is missing or broken, or an answer in it has no score.
    """
    grid = {index: cells for index, cells in enumerate(matrix.values)}
    if matrix.row0 is not None:
        grid[-1] = matrix.row0
    rows: dict[tuple[int, int], list[Row]] = {}
    for row, cells in grid.items():
        for column, cell in enumerate(cells):
            if cell is not None:
                rows[row, column] = _read(path(row, column))
    return rows


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        stage, task = path.parent.name, path.stem
        hint = (
            f"it holds the scored answers on {task} after {stage}; leave the cell of the matrix empty if there are none"
        )
        raise UserError("there is no such answer file", where=str(path), hint=hint)
    read = read_predictions(path)
    unscored = next((prediction.id for prediction, score in read if score is None), None)
    if unscored is not None or not read:
        what = "has no answers" if not read else f"the answer to question {unscored} has no metadata.score"
        raise UserError(what, where=str(path), hint="answer files of a run have scores")
    return [(score, _image(prediction)) for prediction, score in read if score is not None]


def _image(prediction: Prediction) -> str:
    """What questions share: their images, known by digest, else by name; one about none has only itself."""
    digests = prediction.metadata.get("digests")
    names = [str(digest) for digest in digests] if isinstance(digests, list | tuple) and digests else prediction.images
    return "\0".join(names) if names else f"{prediction.task}\0{prediction.id}"
