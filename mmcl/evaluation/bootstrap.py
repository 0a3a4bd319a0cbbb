"""How far the metrics of a matrix can be off because the test questions are a sample: a bootstrap over images.

Questions about one image are right or wrong together, and a question is asked again after each stage. So what is drawn
(with replacement; Efron 1979) is an image, with all questions about it, of all tasks and after all stages: a difference
between stages is not blurred by which questions happened to be in the test set. Tasks that share no image are drawn
apart. The same questions give the same draws, so runs that answered the same questions can be compared draw by draw.

Legend: B draws, S stages with row 0 first, n images of a stratum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isclose, sqrt

import numpy as np
from numpy.typing import NDArray

from mmcl.evaluation.continual import Peak, Undefined, acc, bwt, bwt_t, fm, fwt, maa, mft, peak_rows, peaks
from mmcl.evaluation.matrix import Matrix

DRAWS = 1000

METRICS = ("ACC", "MAA", "MFT", "BWT", "BWT_T", "FM", "FM_chaudhry", "FM_incl_last", "FWT")
"""Metrics with one value that all tasks make up, which have intervals."""

Row = tuple[float, str]
"""Score of a question, and the image (or what else) that it shares with others; text-only questions stand alone."""

Rows = Mapping[tuple[int, int], Sequence[Row]]
"""The questions behind cells of the matrix: {(row, column): rows}; row -1 is row 0, the scores before any stage."""


@dataclass(frozen=True, slots=True)
class Draws:
    """The metrics of a matrix, each with its values over the draws.

    Attributes:
        estimates: of the matrix itself; a metric that the matrix does not have is missing.
        values: [B] around the estimate. For metrics with a peak, the stage of the peak is that of the matrix itself.
        bias: by how much the estimate is too high on average because a peak was looked for: the mean over the draws of
            the metric with its own peak minus that with the peak of the matrix.
        freedom: images minus strata, the degrees of freedom of the spread.
        questions: equal for matrices that were measured on the same questions.
        undefined: metrics without draws, and why.
    """

    estimates: Mapping[str, float]
    values: Mapping[str, NDArray[np.float64]]
    bias: Mapping[str, float]
    freedom: int
    questions: str
    undefined: Mapping[str, str] = field(default_factory=dict)


def draw(matrix: Matrix, rows: Rows, *, count: int = DRAWS) -> Draws:
    """Metrics of matrices from test sets that could have been drawn as well.

    Args:
        matrix: the scores.
        rows: of its cells. Cells whose score is not the mean of their rows (corpus BLEU) have no draws.
        count: how many draws, B.
    """
    strata = _strata(rows)
    cells: dict[tuple[int, int], NDArray[np.float64]] = {}  # of each measured cell [B]
    for tasks in strata:
        cells |= _cells({key: value for key, value in rows.items() if key[1] in tasks}, count)
    odd = sorted(
        {matrix.tasks[column] for (row, column), drawn in cells.items() if not _is_mean(matrix, rows, row, column)}
    )
    whole = [np.isfinite(drawn) for drawn in cells.values()]
    kept = np.logical_and.reduce(whole) if whole else np.zeros(0, dtype=bool)
    cells = {key: drawn[kept] for key, drawn in cells.items()}
    estimates: dict[str, float] = {}
    values: dict[str, NDArray[np.float64]] = {}
    bias: dict[str, float] = {}
    undefined: dict[str, str] = {}
    for name, of, kind in _formulas(matrix):
        try:
            estimates[name] = of(matrix)
            if odd:
                raise Undefined(f"the score of these tasks is not the mean of their rows: {', '.join(odd)}")
            if not kept.any():
                raise Undefined("the questions behind the matrix are not known")
            values[name] = _drawn(matrix, cells, of)
            bias[name] = 0.0 if kind is None else _bias(matrix, cells, kind)
        except Undefined as reason:
            undefined[name] = str(reason)
            values.pop(name, None)
    images = {cluster for of in rows.values() for _, cluster in of}
    names = "\0".join(sorted(f"{matrix.tasks[column]}\0{cluster}" for column, cluster in _questions(rows)))
    return Draws(
        estimates=estimates,
        values=values,
        bias=bias,
        freedom=max(1, len(images) - len(strata)),
        questions=hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest(),
        undefined=undefined,
    )


def _questions(rows: Rows) -> set[tuple[int, str]]:
    return {(column, cluster) for (_, column), of in rows.items() for _, cluster in of}


def _formulas(matrix: Matrix) -> Iterable[tuple[str, Callable[[Matrix], float], Peak | None]]:
    """Name and formula of each metric, with the peak that was looked for; the formula has the peak of this matrix."""
    plain: dict[str, Callable[[Matrix], float]] = {"ACC": acc, "MAA": maa, "MFT": mft, "BWT": bwt, "BWT_T": bwt_t}
    for name, of in plain.items():
        yield name, of, None
    kinds: dict[str, Peak] = {"FM": "learned", "FM_chaudhry": "chaudhry", "FM_incl_last": "incl_last"}
    for name, kind in kinds.items():
        try:
            held = peaks(matrix, peak=kind)
        except Undefined:
            held = None  # the formula says why
        yield name, partial(fm, peak=kind, held=held), kind
    yield "FWT", _fwt, None


def _fwt(matrix: Matrix) -> float:
    """With the zero-shot row of the same draw as the baseline."""
    cells = zip(matrix.tasks, matrix.row0 or (), strict=False)
    return fwt(matrix, {task: score for task, score in cells if score is not None} if matrix.row0 else None)


def _strata(rows: Rows) -> list[set[int]]:
    """Columns in groups: those that share an image, directly or through others, are in one."""
    groups: list[tuple[set[int], set[str]]] = []
    for column in dict.fromkeys(column for _, column in rows):
        tasks = {column}
        clusters = {cluster for (_, of), cell in rows.items() if of == column for _, cluster in cell}
        apart = []
        for others, theirs in groups:
            if clusters & theirs:
                tasks |= others
                clusters |= theirs
            else:
                apart.append((others, theirs))
        groups = [*apart, (tasks, clusters)]
    return [tasks for tasks, _ in groups]


def _cells(rows: Rows, count: int) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Draws of each cell of one stratum [B]; NaN where none of the cell's questions was drawn."""
    clusters = sorted({cluster for cell in rows.values() for _, cluster in cell})
    place = {cluster: index for index, cluster in enumerate(clusters)}
    sums, counts = (np.zeros((len(rows), len(clusters))) for _ in range(2))
    for index, cell in enumerate(rows.values()):
        where = [place[cluster] for _, cluster in cell]
        np.add.at(sums[index], where, [score for score, _ in cell])
        np.add.at(counts[index], where, 1)
    seed = hashlib.sha256("\0".join(clusters).encode("utf-8", "surrogatepass")).digest()
    generator = np.random.default_rng(int.from_bytes(seed[:8]))
    means = np.empty((count, len(rows)))
    for start in range(0, count, 50):  # a few at a time: the draws of a large test set would fill the memory
        some = slice(start, min(start + 50, count))
        drawn = generator.integers(len(clusters), size=(some.stop - start, len(clusters)))
        times = np.stack([np.bincount(each, minlength=len(clusters)) for each in drawn]).astype(float)
        asked = times @ counts.T
        means[some] = np.divide(times @ sums.T, asked, out=np.full(asked.shape, np.nan), where=asked > 0)
    measured = sums.sum(1) / counts.sum(1)
    # The spread of draws is that of the population's estimate from n - 1 images (Efron and Tibshirani 1993, 5.2).
    wider = sqrt(len(clusters) / (len(clusters) - 1)) if len(clusters) > 1 else 1.0
    means = measured + wider * (means - measured)
    return {key: means[:, index] for index, key in enumerate(rows)}


def _is_mean(matrix: Matrix, rows: Rows, row: int, column: int) -> bool:
    given = (matrix.row0 or ())[column] if row < 0 else matrix.values[row][column]
    scores = [score for score, _ in rows[row, column]]
    return given is not None and isclose(sum(scores) / len(scores), given, abs_tol=1e-6)


def _drawn(
    matrix: Matrix, cells: Mapping[tuple[int, int], NDArray[np.float64]], of: Callable[[Matrix], float]
) -> NDArray[np.float64]:
    """The metric of every draw [B]. All formulas are sums of cells with weights, once the peaks are held."""

    def alone(cell: tuple[int, int]) -> Matrix:
        """The matrix that has 1 in this cell, 0 in the others with rows; those without have none."""

        def row(index: int) -> list[float | None]:
            return [float((index, c) == cell) if (index, c) in cells else None for c in range(len(matrix.tasks))]

        values = [row(index) for index in range(len(matrix.stages))]
        return Matrix(matrix.tasks, matrix.stages, values, None if matrix.row0 is None else row(-1))

    total = np.zeros(len(next(iter(cells.values()))))
    for cell, drawn in cells.items():
        total += of(alone(cell)) * drawn
    return total


def _bias(matrix: Matrix, cells: Mapping[tuple[int, int], NDArray[np.float64]], kind: Peak) -> float:
    """By how much the mean of the highest scores is above that of the scores at the matrix's own peaks."""
    above = []
    for column, rows in peak_rows(matrix, peak=kind).items():
        drawn = np.stack([cells[row, column] for row in rows])
        held = rows.index(peaks(matrix, peak=kind)[column])
        above.append(float(np.mean(drawn.max(0) - drawn[held])))
    return sum(above) / len(above)
