"""Score a file of answers with one metric: the document of `mmcl score`."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmcl.errors import Problem, UserError
from mmcl.evaluation.cases import Cases, read_cases
from mmcl.evaluation.predictions import read_predictions
from mmcl.evaluation.questions import match, named, read_questions
from mmcl.files import read_text
from mmcl.protocols import Metric, Prediction, Score
from mmcl.recipe import registry


@dataclass(frozen=True, slots=True)
class Questions:
    """Where the references stand, if not beside the answers.

    Attributes:
        path: the file of the questions.
        form: how it is read: a format's name, or `{name: NAME, option: value}` as YAML.
        images: folder that image paths start from; None for the folder of the file.
    """

    path: Path
    form: str = "llava_json"
    images: Path | None = None


def score_file(
    path: Path,
    *,
    metric: str,
    mode: Literal["strict", "paper"] = "strict",
    questions: Questions | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Score an answer file, or JSON `{"cases": [{"id", "prediction", "references"}]}`.

    Without questions every row of the file is scored, also where ids repeat. Cases that name a `corpus` are scored
    within it; then `details` has the value of each, and the corpus value is the mean over all rows.

    Args:
        path: the file. An answer file needs the references of each row in `metadata.answers`, or the questions.
        metric: a registered metric, or `./file.py:Class`.
        mode: `strict`, or `paper` for the rule that published tables used.
        questions: then the rows are those of the questions, whose references count: a question without an answer is
            wrong, equal answers to one question count once, answers to other questions not at all.
        folder: what `./file.py:Class` is relative to; the working directory if None.

    Returns:
        `{"metric", "mode", "definition", "follows", "corpus", "n", "rows": [{"id", "score"}], "missing", "repeated",
        "unknown", "warnings"}`, the rows in the order of the file, lists of ids, and `details` where the metric has
        further values of the whole. `mode`: None where it has none.

    Raises:
        UserError: for an unknown metric or mode, for a score that is no finite number, for two different answers to
            one question, and naming every row that can't be scored.
    """
    folder = folder if folder is not None else Path.cwd()
    scorer, used = _metric(metric, mode, folder)
    cases, warnings = _answers(path, referenced=questions is None)
    if questions is not None:
        samples = read_questions(questions.path, form=questions.form, images=questions.images, folder=folder)
        matched = match(cases.rows, samples, answers=path, asked=questions.path)
        rows, sets = matched.rows, [""] * len(matched.rows)
        warnings += matched.warnings()
        ids = {"missing": matched.missing, "repeated": matched.repeated, "unknown": matched.unknown}
    else:
        rows, sets = cases.rows, cases.sets
        counts = Counter(row.id for row in rows)
        ids = {"missing": [], "repeated": [key for key, count in counts.items() if count > 1], "unknown": []}
        if ids["repeated"]:
            warnings.append(f"these ids stand in several rows, each of which counts: {named(ids['repeated'])}")
    score, names = _scored(scorer, metric, rows, sets, path)
    if len(names) > 1:
        warnings.append(f"{len(names)} sets, each scored by itself: {named(names)}")
    return {
        "metric": metric,
        "mode": used,
        "definition": scorer.definition,
        "follows": scorer.follows,
        "corpus": score.corpus,
        "n": len(rows),
        **({"details": dict(score.details)} if score.details else {}),
        "rows": [{"id": row.id, "score": value} for row, value in zip(rows, score.rows, strict=True)],
        **ids,
        "warnings": warnings,
    }


def _metric(name: str, mode: str, folder: Path) -> tuple[Metric, str | None]:
    constructor = registry.load("metrics", name, folder)
    has_modes = "mode" in inspect.signature(constructor).parameters
    metric: Metric = constructor(mode=mode) if has_modes else constructor()
    return metric, mode if has_modes else None


def _scored(scorer: Metric, name: str, rows: list[Prediction], sets: list[str], path: Path) -> tuple[Score, list[str]]:
    """The score of each set of rows alone, put together in the order of the rows; and the names of the sets."""
    names = list(dict.fromkeys(sets))
    if len(names) == 1:
        return _checked(scorer(rows), name, rows, path), names
    values = [0.0] * len(rows)
    details: dict[str, float] = {}
    for each in names:
        places = [place for place, of in enumerate(sets) if of == each]
        part = _checked(scorer([rows[place] for place in places]), name, [rows[place] for place in places], path)
        details |= {each: part.corpus} | {f"{each}: {key}": value for key, value in part.details.items()}
        for place, value in zip(places, part.rows, strict=True):
            values[place] = value
    return Score(tuple(values), math.fsum(values) / len(values), details), names


def _checked(score: Score, name: str, rows: list[Prediction], path: Path) -> Score:
    """The score, once it is one."""
    if len(score.rows) != len(rows):
        message = f"metric {name!r} gave {len(score.rows)} scores for {len(rows)} rows"
        raise UserError(message, where=str(path), hint="a metric must score every row that it is given")
    hint = "a metric must give finite numbers"
    bad = [row.id for row, value in zip(rows, score.rows, strict=True) if not math.isfinite(value)]
    if bad:
        raise UserError(f"metric {name!r} gave no number for: {named(bad)}", where=str(path), hint=hint)
    if not all(map(math.isfinite, [score.corpus, *score.details.values()])):
        raise UserError(f"metric {name!r} gave no number for the whole set", where=str(path), hint=hint)
    return score


def _answers(path: Path, *, referenced: bool) -> tuple[Cases, list[str]]:
    """The rows of either kind of file, and what a reader of their score has to know."""
    rows = read_cases(read_text(path), str(path))
    warnings = []
    if rows is None:
        found = [prediction for prediction, _ in read_predictions(path)]
        rows = Cases(found, [f"{path} (question {row.id})" for row in found], [""] * len(found))
        hint = "references stand in metadata.answers of an answer file; or give the file of the questions"
        problems = [
            Problem(place, "has no reference to score against", hint)
            for row, place in zip(rows.rows, rows.places, strict=True)
            if referenced and not row.answers
        ]
        if problems:
            raise UserError(problems=problems)
    elif rows.unscorable and referenced:
        warnings.append(f"these cases have no references and count as wrong: {named(rows.unscorable)}")
    if not rows.rows:
        raise UserError("holds no answers", where=str(path))
    return rows, warnings
