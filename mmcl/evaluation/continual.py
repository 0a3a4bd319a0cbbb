"""Metrics of continual learning: pure functions of a performance matrix.

R[i, j] is the score on task j after stage i, R[0, j] the score before any stage, T the number of tasks learned. In
papers stage i teaches task i; here `learned_at` says which stage taught which task, so that rows and columns in which
no task was learned are allowed. A function raises `Undefined`, with the reason, where a cell that it needs was not
measured: a value is never guessed from the cells that are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Literal

from mmcl.evaluation.matrix import Matrix

Reference = Mapping[str, float]
"""A reference score per task, such as the score at random initialisation or of a single-task model."""


class Undefined(Exception):
    """Why a metric has no value for this matrix."""


# --------------------------------------------------------------------------------------------- the matrix as a stream


def learned_at(matrix: Matrix) -> dict[int, int]:
    """Which row taught which column: {column: row}, in the order of the rows.

    Stages are matched to tasks by name, where `a+b` is a stage that taught both; of repeated stages the first counts.
    They are matched by position if no name matches, and in a square matrix in which only some match, each at its own
    position. Columns without a stage are probes, or tasks still to come: the metrics leave them out.
    """
    column = {task: index for index, task in enumerate(matrix.tasks)}
    named: dict[int, int] = {}
    for row, stage in enumerate(matrix.stages):
        for part in [stage] if stage in column else stage.split("+"):
            if part in column:
                named.setdefault(column[part], row)
    misnamed = len(matrix.stages) == len(matrix.tasks) and not column.keys() >= set(matrix.stages)
    if not named or (misnamed and all(task == row for task, row in named.items())):
        return {index: index for index in range(min(len(matrix.stages), len(matrix.tasks)))}
    return named


def notes(matrix: Matrix) -> list[str]:
    """What a reader of the metrics has to know about how the matrix was read; empty where nothing was assumed."""
    found: list[str] = []
    learned = learned_at(matrix)
    names = {row: (stage, *stage.split("+")) for row, stage in enumerate(matrix.stages)}
    if any(matrix.tasks[task] not in names[row] for task, row in learned.items()):
        found.append("stages are not named like the tasks: stage i is taken to have taught task i")
    if left_out := [task for index, task in enumerate(matrix.tasks) if index not in learned]:
        found.append(f"no stage taught these tasks, the metrics leave them out: {', '.join(left_out)}")
    cells = [cell for row in (*matrix.values, matrix.row0 or ()) for cell in row if cell is not None]
    if any(not 0 <= cell <= 1 for cell in cells):
        found.append("scores lie outside [0, 1]: values are on the scale of the matrix, and DR_REM has no meaning")
    if any(cell > 1 for cell in cells) and (small := [cell for cell in cells if 0 < cell < 1]):
        found.append(
            f"percent mixed with fractions? {len(small)} of {len(cells)} scores lie between 0 and 1 ({small[0]:g}), "
            f"others up to {max(cells):g}"
        )
    return found


def _cell(matrix: Matrix, row: int, task: int) -> float:
    value = matrix.values[row][task]
    if value is None:
        raise Undefined(f"needs the score on {matrix.tasks[task]!r} after stage {matrix.stages[row]!r}: not measured")
    return value


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def _learned(matrix: Matrix) -> dict[int, int]:
    learned = learned_at(matrix)
    if not learned:
        raise Undefined("the matrix has no stage in which a task was learned")
    return learned


def _old(matrix: Matrix) -> dict[int, int]:
    """Tasks learned before the last stage: those that can be forgotten."""
    old = {task: row for task, row in _learned(matrix).items() if row < len(matrix.stages) - 1}
    if not old:
        raise Undefined("needs a task that was learned before the last stage")
    return old


def _new(matrix: Matrix) -> dict[int, int]:
    """Tasks learned after the first stage: those that earlier stages can help."""
    new = {task: row for task, row in _learned(matrix).items() if row > 0}
    if not new:
        raise Undefined("needs a task that was learned after the first stage")
    return new


def _given(reference: Reference | None, matrix: Matrix, task: int, what: str) -> float:
    name = matrix.tasks[task]
    if reference is None or name not in reference:
        raise Undefined(f"needs {what}" + ("" if reference is None else f" for {name!r}"))
    return reference[name]


# ------------------------------------------------------------------------------------------------------------ averages


def acc(matrix: Matrix) -> float:
    """Average accuracy over the learned tasks after the last stage."""
    last = len(matrix.stages) - 1
    return _mean([_cell(matrix, last, task) for task in _learned(matrix)])


def op(matrix: Matrix) -> list[float | None]:
    """Overall performance after each stage, over the tasks learned until then; None where a cell is missing."""
    return [value if isinstance(value, float) else None for value in overall(matrix)]


def overall(matrix: Matrix) -> list[float | Undefined]:
    """`op`, with the reason where a cell is missing."""
    learned = _learned(matrix)
    values: list[float | Undefined] = []
    for stage in range(len(matrix.stages)):
        try:
            seen = [_cell(matrix, stage, task) for task, row in learned.items() if row <= stage]
            values.append(_mean(seen) if seen else Undefined(f"no task was learned until {matrix.stages[stage]!r}"))
        except Undefined as missing:
            values.append(missing)
    return values


def maa(matrix: Matrix) -> float:
    """Mean over stages of the overall performance."""
    values = overall(matrix)
    for value in values:
        if isinstance(value, Undefined):
            raise value
    return _mean([value for value in values if isinstance(value, float)])


def mft(matrix: Matrix) -> float:
    """Mean of the scores right after learning each task."""
    return _mean([_cell(matrix, row, task) for task, row in _learned(matrix).items()])


# ---------------------------------------------------------------------------------------------- forgetting and transfer


def bwt(matrix: Matrix) -> float:
    """Backward transfer over the tasks that later stages could change (denominator T - 1)."""
    last = len(matrix.stages) - 1
    return _mean([_cell(matrix, last, task) - _cell(matrix, row, task) for task, row in _old(matrix).items()])


def bwt_t(matrix: Matrix) -> float:
    """Backward transfer over all T tasks: the last task adds a zero to the sum and one to the denominator."""
    last = len(matrix.stages) - 1
    return _mean([_cell(matrix, last, task) - _cell(matrix, row, task) for task, row in _learned(matrix).items()])


Peak = Literal["learned", "chaudhry", "incl_last"]


def peak_rows(matrix: Matrix, *, peak: Peak = "learned") -> dict[int, list[int]]:
    """Over which stages the peak of each task learned before the last stage is taken: {column: rows}; see `peaks`."""
    last = len(matrix.stages) - 1
    end = last + 1 if peak == "incl_last" else last
    return {task: list(range(0 if peak == "chaudhry" else row, end)) for task, row in _old(matrix).items()}


def peaks(matrix: Matrix, *, peak: Peak = "learned") -> dict[int, int]:
    """The stage of the peak score of each task learned before the last stage, the first of equal ones: {column: row}.

    Args:
        matrix: the scores.
        peak: over which stages the peak is taken. `learned`: from the task's own stage to the one before the last;
            `chaudhry`: every stage before the last; `incl_last`: from the task's own stage to the last, so that the
            forgetting is never negative.
    """
    return {
        task: max(rows, key=lambda row: _cell(matrix, row, task)) for task, rows in peak_rows(matrix, peak=peak).items()
    }


def forgetting(matrix: Matrix, *, peak: Peak = "learned", held: Mapping[int, int] | None = None) -> dict[str, float]:
    """Peak score minus last score of each task learned before the last stage.

    Args:
        matrix: the scores.
        peak: see `peaks`.
        held: the stage of each task's peak, if it is not to be looked for in this matrix.
    """
    last = len(matrix.stages) - 1
    found = peaks(matrix, peak=peak) if held is None else held
    return {matrix.tasks[task]: _cell(matrix, row, task) - _cell(matrix, last, task) for task, row in found.items()}


def fm(matrix: Matrix, *, peak: Peak = "learned", held: Mapping[int, int] | None = None) -> float:
    """Mean of `forgetting`."""
    return _mean(list(forgetting(matrix, peak=peak, held=held).values()))


def first_minus_last(matrix: Matrix) -> dict[str, float]:
    """Score right after learning minus last score, of each learned task."""
    last = len(matrix.stages) - 1
    learned = _learned(matrix)
    return {matrix.tasks[task]: _cell(matrix, row, task) - _cell(matrix, last, task) for task, row in learned.items()}


def fwt(matrix: Matrix, baseline: Reference | None) -> float:
    """Forward transfer: the score just before a task's own stage minus the baseline."""
    what = "a zero-shot row or baseline scores"
    new = _new(matrix)
    return _mean([_cell(matrix, row - 1, task) - _given(baseline, matrix, task, what) for task, row in new.items()])


def transfer(matrix: Matrix) -> dict[str, dict[str, float]]:
    """What each stage did to each task, R[i,j] - R[i-1,j], where both were measured: negative where it harmed it.

    The first stage is compared with the zero-shot row, where there is one.
    """
    _learned(matrix)
    result: dict[str, dict[str, float]] = {}
    before: Sequence[float | None] = matrix.row0 or [None] * len(matrix.tasks)
    for stage, row in zip(matrix.stages, matrix.values, strict=True):
        cells = zip(matrix.tasks, row, before, strict=True)
        result[stage] = {task: now - then for task, now, then in cells if now is not None and then is not None}
        before = row
    return result


def intransigence(matrix: Matrix, single: Reference | None) -> float:
    """How far learning a task in the stream falls short of learning it alone."""
    what = "scores of single-task models"
    learned = _learned(matrix)
    return _mean([_given(single, matrix, task, what) - _cell(matrix, row, task) for task, row in learned.items()])


# ---------------------------------------------------------------------------- whole-matrix averages and relative scores


def dr_a(matrix: Matrix) -> float:
    """Mean of the lower triangle with the diagonal."""
    stages = len(matrix.stages)
    return _mean([_cell(matrix, i, task) for task, row in _learned(matrix).items() for i in range(row, stages)])


def dr_bwt(matrix: Matrix) -> float:
    """Mean over the strict lower triangle of the difference from the diagonal."""
    old, stages = _old(matrix), len(matrix.stages)
    return _mean(
        [_cell(matrix, i, task) - _cell(matrix, row, task) for task, row in old.items() for i in range(row + 1, stages)]
    )


def dr_fwt(matrix: Matrix) -> float:
    """Mean of the strict upper triangle."""
    return _mean([_cell(matrix, i, task) for task, row in _new(matrix).items() for i in range(row)])


def mtil_transfer(matrix: Matrix) -> float:
    """Mean over tasks of the mean score before the task's own stage."""
    return _mean([_mean([_cell(matrix, i, task) for i in range(row)]) for task, row in _new(matrix).items()])


def mtil_avg(matrix: Matrix) -> float:
    """Mean of every cell."""
    return _mean([_cell(matrix, i, task) for task in _learned(matrix) for i in range(len(matrix.stages))])


def climb_relative_gain(
    matrix: Matrix, baseline: Reference | None, single: Reference | None
) -> dict[str, float | None]:
    """Gain of learning in the stream over learning alone, in percent of what learning alone gains over the baseline."""
    result: dict[str, float | None] = {}
    for task, row in _learned(matrix).items():
        start = _given(baseline, matrix, task, "a zero-shot row or baseline scores")
        alone = _given(single, matrix, task, "scores of single-task models")
        gain = _cell(matrix, row, task) - alone
        result[matrix.tasks[task]] = None if alone == start else 100 * gain / (alone - start)
    return result


def climb_forgetting(matrix: Matrix, baseline: Reference | None) -> dict[str, dict[str, float | None]]:
    """After each stage, each earlier task's loss in percent of what its own stage gained over the baseline."""
    result: dict[str, dict[str, float | None]] = {}
    old = _old(matrix)
    for stage in range(1, len(matrix.stages)):
        losses: dict[str, float | None] = {}
        for task, row in old.items():
            if row < stage:
                peak = _cell(matrix, row, task)
                start = _given(baseline, matrix, task, "a zero-shot row or baseline scores")
                loss = peak - _cell(matrix, stage, task)
                losses[matrix.tasks[task]] = None if peak == start else 100 * loss / (peak - start)
        if losses:
            result[matrix.stages[stage]] = losses
    return result
