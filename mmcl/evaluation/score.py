"""Score a file of answers with one metric: the document of `mmcl score`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmcl.errors import Problem, UserError
from mmcl.evaluation.predictions import read_predictions
from mmcl.files import read_text
from mmcl.protocols import Metric, Prediction
from mmcl.recipe import registry


def score_file(
    path: Path, *, metric: str, mode: Literal["strict", "paper"] = "strict", folder: Path | None = None
) -> dict[str, Any]:
    """Score an answer file, or JSON `{"cases": [{"id", "prediction", "references"}]}`.

    Args:
        path: the file. An answer file needs the references of each row in `metadata.answers`.
        metric: a registered metric, or `./file.py:Class`.
        mode: `strict`, or `paper` for the rule that published tables used.
        folder: what `./file.py:Class` is relative to; the working directory if None.

    Returns:
        `{"metric", "mode", "definition", "follows", "corpus", "n", "rows": [{"id", "score"}]}`, the rows in the order
        of the file, and `details` where the metric has further values of the whole. `mode`: None where it has none.

    Raises:
        UserError: for an unknown metric or mode, and naming every row that can't be scored.
    """
    scorer, used = _metric(metric, mode, folder if folder is not None else Path.cwd())
    rows = _read(path)
    score = scorer(rows)
    if len(score.rows) != len(rows):
        raise UserError(
            f"metric {metric!r} gave {len(score.rows)} scores for {len(rows)} rows",
            where=str(path),
            hint="a metric must score every row that it is given",
        )
    return {
        "metric": metric,
        "mode": used,
        "definition": scorer.definition,
        "follows": scorer.follows,
        "corpus": score.corpus,
        "n": len(rows),
        **({"details": dict(score.details)} if score.details else {}),
        "rows": [{"id": row.id, "score": value} for row, value in zip(rows, score.rows, strict=True)],
    }


def _metric(name: str, mode: str, folder: Path) -> tuple[Metric, str | None]:
    constructor = registry.load("metrics", name, folder)
    has_modes = "mode" in inspect.signature(constructor).parameters
    metric: Metric = constructor(mode=mode) if has_modes else constructor()
    return metric, mode if has_modes else None


def _read(path: Path) -> list[Prediction]:
    cases = _cases(read_text(path))
    if cases is None:
        rows = [prediction for prediction, _ in read_predictions(path)]
        places = [f"{path} (question {row.id})" for row in rows]
    else:
        rows, places = _predictions(cases, str(path))
    if not rows:
        raise UserError("holds no answers", where=str(path))
    hint = "references stand in metadata.answers of an answer file, or in references of a case"
    problems = [
        Problem(place, "has no reference to score against", hint)
        for row, place in zip(rows, places, strict=True)
        if not row.answers
    ]
    if problems:
        raise UserError(problems=problems)
    return rows


def _cases(text: str) -> list[object] | None:
    """The list under `cases`, None if the text is not one JSON document that has it (then it is an answer file)."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        return None
    cases = data.get("cases") if isinstance(data, Mapping) else None
    return cases if isinstance(cases, list) else None


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(each, int | float) for each in value)


def _predictions(cases: list[object], path: str) -> tuple[list[Prediction], list[str]]:
    rows: list[Prediction] = []
    places: list[str] = []
    problems: list[Problem] = []
    hint = 'each case is {"id": "...", "prediction": "...", "references": ["..."]}'
    for number, case in enumerate(cases):
        place = f"{path}:cases[{number}]"
        if not isinstance(case, Mapping):
            problems.append(Problem(place, "is not a JSON object", hint))
            continue
        text, references = case.get("prediction"), case.get("references")
        if isinstance(references, str):
            references = [references]
        if isinstance(references, list):  # boxes
            references = [json.dumps(each) if _is_box(each) else each for each in references]
        if not isinstance(text, str):
            problems.append(
                Problem(place, "prediction must be a text" if text is not None else "has no prediction", hint)
            )
        elif not isinstance(references, list) or not all(isinstance(reference, str) for reference in references):
            problems.append(Problem(place, "references must be a list of texts", hint))
        else:
            identity = str(case.get("id", number))
            rows.append(Prediction(id=identity, task="", prompt="", text=text, answers=tuple(references)))
            places.append(f"{place} (id {identity})")
    if problems:
        raise UserError(problems=problems)
    return rows, places
