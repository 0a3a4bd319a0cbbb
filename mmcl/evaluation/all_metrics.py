"""All metrics of a matrix with their definitions: the documents of `metrics.json` and `mmcl metrics`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mmcl.errors import UserError
from mmcl.evaluation.bootstrap import METRICS, Draws, draw
from mmcl.evaluation.continual import (
    Reference,
    Undefined,
    acc,
    bwt,
    bwt_t,
    climb_forgetting,
    climb_relative_gain,
    dr_a,
    dr_bwt,
    dr_fwt,
    first_minus_last,
    fm,
    forgetting,
    fwt,
    intransigence,
    maa,
    mft,
    mtil_avg,
    mtil_transfer,
    notes,
    op,
    overall,
    transfer,
)
from mmcl.evaluation.matrix import ZERO_SHOT, Matrix, read_references
from mmcl.evaluation.rows import rows_behind
from mmcl.evaluation.uncertainty import estimate

T = TypeVar("T")

DEFINITIONS: dict[str, str] = {
    "ACC": "(1/T) sum_j R[T,j]: average accuracy after the last stage, also called Last, MFN or AP (Lopez-Paz and "
    "Ranzato 2017, 1706.08840)",
    "OP": "OP_t = (1/t) sum_{j<=t} R[t,j], one value per stage: overall performance (TRACE, 2310.06762)",
    "MAA": "(1/T) sum_t OP_t: average incremental accuracy (iCaRL, 1611.07725; CoIN, 2403.08350)",
    "MFT": "(1/T) sum_i R[i,i]: score right after learning, learning accuracy (MCITlib)",
    "BWT": "(1/(T-1)) sum_{i<T} (R[T,i] - R[i,i]): backward transfer, denominator T-1 (Lopez-Paz and Ranzato 2017)",
    "BWT_T": "(1/T) sum_{i<=T} (R[T,i] - R[i,i]): backward transfer, denominator T (CoIN, TRACE)",
    "FM": "(1/(T-1)) sum_{j<T} (max_{j<=l<T} R[l,j] - R[T,j]): forgetting, peak since the task was learned (VQACL)",
    "FM_chaudhry": "(1/(T-1)) sum_{j<T} (max_{l<T} R[l,j] - R[T,j]): forgetting, peak over all earlier stages, also "
    "those before the task was learned (Chaudhry et al. 2018, 1801.10112)",
    "FM_incl_last": "(1/(T-1)) sum_{j<T} (max_{j<=l<=T} R[l,j] - R[T,j]): forgetting, peak including the last stage, "
    "never negative, so it hides improvement (LAMDA-PILOT)",
    "FWT": "(1/(T-1)) sum_{i>=2} (R[i-1,i] - b_i): forward transfer (Lopez-Paz and Ranzato 2017)",
    "intransigence": "(1/T) sum_i (s_i - R[i,i]), s_i = score of a model trained on task i alone (after Chaudhry et "
    "al. 2018, who use the jointly trained model)",
    "forgetting_per_task": "max_{j<=l<T} R[l,j] - R[T,j] of each task learned before the last stage; FM is the mean",
    "first_minus_last_per_task": "R[j,j] - R[T,j] of each task; the mean is -BWT_T (avalanche's forgetting)",
    "transfer": "R[i,j] - R[i-1,j] of each stage i and task j: what learning one task did to another, negative where "
    "it harmed it",
    "MTIL_transfer": "mean_{j>=2} mean_{i<j} R[i,j] (ZSCL, 2303.06628)",
    "MTIL_avg": "mean of all R[i,j] (ZSCL)",
    "MTIL_last": "= ACC (ZSCL)",
    "DR_A": "mean of R[i,j], i>=j (Diaz-Rodriguez et al. 2018, 1810.13166)",
    "DR_BWT": "mean of R[i,j] - R[j,j], i>j (Diaz-Rodriguez et al. 2018)",
    "DR_REM": "1 - abs(min(DR_BWT, 0)): remembering, for scores in [0, 1] (Diaz-Rodriguez et al. 2018)",
    "DR_BWT_plus": "max(DR_BWT, 0) (Diaz-Rodriguez et al. 2018)",
    "DR_FWT": "mean of R[i,j], i<j (Diaz-Rodriguez et al. 2018)",
    "climb_relative_gain_percent": "100 (R[i,i] - s_i) / (s_i - b_i) of each task, null where s_i = b_i (CLiMB, "
    "2206.09059)",
    "climb_forgetting_percent": "100 (R[j,j] - R[t,j]) / (R[j,j] - b_j) of each task j<t after each stage t, null "
    "where R[j,j] = b_j (CLiMB)",
}
"""The formula of each metric, with its source."""

_USE_BASELINE = ("FWT", "climb_relative_gain_percent", "climb_forgetting_percent")


def metrics_of(matrix: Matrix, baseline: Reference | None = None, single: Reference | None = None) -> dict[str, Any]:
    """Every metric of the matrix: the document of `metrics.json`.

    Args:
        matrix: the scores.
        baseline: b_j, such as scores at random initialisation; the zero-shot row if None.
        single: s_j, scores of models trained on one task alone.

    Returns:
        `{"metrics": {name: value or None}, "undefined": {name: reason}, "definitions": {name: text}, "warnings": []}`.
        A value is a number, for `OP` a list with one entry per stage, for metrics per task an object.
    """
    named, start = "the given baseline scores", baseline
    if baseline is None and matrix.row0 is not None:
        named = "the zero-shot row"
        start = {task: score for task, score in zip(matrix.tasks, matrix.row0, strict=True) if score is not None}
    formulas: dict[str, Callable[[], Any]] = {
        "ACC": lambda: acc(matrix),
        "OP": lambda: op(matrix),
        "MAA": lambda: maa(matrix),
        "MFT": lambda: mft(matrix),
        "BWT": lambda: bwt(matrix),
        "BWT_T": lambda: bwt_t(matrix),
        "FM": lambda: fm(matrix),
        "FM_chaudhry": lambda: fm(matrix, peak="chaudhry"),
        "FM_incl_last": lambda: fm(matrix, peak="incl_last"),
        "FWT": lambda: fwt(matrix, start),
        "intransigence": lambda: intransigence(matrix, single),
        "forgetting_per_task": lambda: forgetting(matrix),
        "first_minus_last_per_task": lambda: first_minus_last(matrix),
        "MTIL_transfer": lambda: mtil_transfer(matrix),
        "MTIL_avg": lambda: mtil_avg(matrix),
        "MTIL_last": lambda: acc(matrix),
        "DR_A": lambda: dr_a(matrix),
        "DR_BWT": lambda: dr_bwt(matrix),
        "DR_REM": lambda: 1 - abs(min(dr_bwt(matrix), 0.0)),
        "DR_BWT_plus": lambda: max(dr_bwt(matrix), 0.0),
        "DR_FWT": lambda: dr_fwt(matrix),
        "transfer": lambda: transfer(matrix),
        "climb_relative_gain_percent": lambda: climb_relative_gain(matrix, start, single),
        "climb_forgetting_percent": lambda: climb_forgetting(matrix, start),
    }
    values: dict[str, Any] = {}
    undefined: dict[str, str] = {}
    for name, formula in formulas.items():
        try:
            values[name] = formula()
        except Undefined as reason:
            values[name] = None
            undefined[name] = str(reason)
    if values["OP"] is not None and (
        missing := [str(value) for value in overall(matrix) if isinstance(value, Undefined)]
    ):
        undefined["OP"] = "; ".join(missing)
    definitions = dict(DEFINITIONS)
    if start is not None:
        definitions |= {name: f"{DEFINITIONS[name]}; b = {named}" for name in _USE_BASELINE}
    return {"metrics": values, "undefined": undefined, "definitions": definitions, "warnings": notes(matrix)}


def metrics_document(
    paths: Sequence[Path],
    baseline: Path | None = None,
    single: Path | None = None,
    answers: Sequence[Path] = (),
) -> dict[str, Any]:
    """The document of `mmcl metrics MATRIX --json`: the metrics themselves, `undefined`, `definitions`, `warnings`.

    With answers or several matrices also `intervals`, see `mmcl.evaluation.uncertainty`. Of several matrices, which are
    runs of one thing with other seeds or orders, the metrics are means, and only those with one value for all tasks.

    Args:
        paths: each a `matrix.csv` or `matrix.json`.
        baseline: CSV of b_j, see `read_references`.
        single: CSV of s_j.
        answers: none, or a folder for each matrix: `STAGE/TASK.jsonl` has the scored answers behind a cell,
            `zero-shot/TASK.jsonl` those of row 0.

    Raises:
        UserError: naming file and row of what can't be read, or there is not one folder of answers for each matrix.
    """
    if answers and len(answers) != len(paths):
        hint = "give --answers once for each matrix, in their order"
        raise UserError(f"{len(answers)} folders of answers for {len(paths)} matrices", where="--answers", hint=hint)
    documents, runs = [], []
    for place, path in enumerate(paths):
        matrix = Matrix.read(path)
        document = metrics_of(
            matrix,
            baseline=None if baseline is None else read_references(baseline, matrix.tasks),
            single=None if single is None else read_references(single, matrix.tasks),
        )
        documents.append({**document.pop("metrics"), **document})
        run = draw(matrix, rows_behind(matrix, _cell_path(matrix, answers[place])) if answers else {})
        runs.append(run if baseline is None else _with_baseline(run, documents[-1]["FWT"]))
    if len(paths) == 1 and not answers:
        return documents[0]
    return _together(documents, runs)


def _with_baseline(run: Draws, value: float | None) -> Draws:
    """The draws of a run whose forward transfer is against given scores, whose questions are not known."""

    def without(values: Mapping[str, T]) -> dict[str, T]:
        return {name: each for name, each in values.items() if name != "FWT"}

    given = {} if value is None else {"FWT": value}
    return replace(
        run,
        estimates={**without(run.estimates), **given},
        values=without(run.values),
        bias=without(run.bias),
        undefined={**run.undefined, "FWT": "the questions behind the baseline are not known"},
    )


def _cell_path(matrix: Matrix, folder: Path) -> Callable[[int, int], Path]:
    def path(row: int, column: int) -> Path:
        found = folder / (ZERO_SHOT if row < 0 else matrix.stages[row]) / f"{matrix.tasks[column]}.jsonl"
        if not found.resolve().is_relative_to(folder.resolve()):
            raise UserError("its path leaves the folder of answers", where=str(found))
        return found

    return path


def _together(documents: Sequence[dict[str, Any]], runs: Sequence[Draws]) -> dict[str, Any]:
    """Means over runs with intervals; of one run its own document with them."""
    found = {name: entry for name in METRICS if (entry := estimate(runs, name)) is not None}
    intervals = {name: entry.to_dict() for name, entry in found.items()}
    if len(runs) == 1:
        return {**documents[0], "intervals": intervals}
    return {
        **{name: found[name].value if name in found else None for name in METRICS},
        "undefined": {
            name: next((doc["undefined"][name] for doc in documents if name in doc["undefined"]), "not of all runs")
            for name in METRICS
            if name not in found
        },
        "definitions": {name: documents[0]["definitions"][name] for name in METRICS},
        "warnings": list(dict.fromkeys(text for doc in documents for text in doc["warnings"])),
        "intervals": intervals,
    }
