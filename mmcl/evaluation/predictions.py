"""Answer files: JSON lines in the LLaVA layout, with what mmcl adds inside `metadata`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from mmcl.errors import Problem, UserError
from mmcl.files import read_text, write_atomically
from mmcl.protocols import Prediction

_OURS = ("score", "answers", "route", "group", "images", "task")
_HINT = 'each line is {"question_id": ..., "prompt": "...", "text": "...", "metadata": {"answers": ["..."]}}'


def answer_row(prediction: Prediction, *, score: float | None = None, model_id: str = "mmcl") -> dict[str, Any]:
    """One line of an answer file.

    Args:
        prediction: the question and the answer given. Keys of its metadata that mmcl itself writes are replaced.
        score: in [0, 1]; None where it was not scored.
        model_id: what gave the answer, such as the stage's name.
    """
    # The same question, model and answer have the same id on every machine, unlike a random one.
    identity = "\0".join((model_id, prediction.task, prediction.id, prediction.text))
    return {
        "question_id": prediction.id,
        "prompt": prediction.prompt,
        "text": prediction.text,
        "answer_id": hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:22],
        "model_id": model_id,
        "metadata": {
            **prediction.metadata,
            "score": score,
            "answers": list(prediction.answers),
            "route": prediction.route,
            "group": prediction.group,
            "images": list(prediction.images),
            "task": prediction.task,
        },
    }


def write_predictions(
    path: Path,
    predictions: Sequence[Prediction],
    scores: Sequence[float] | None = None,
    *,
    model_id: str = "mmcl",
) -> None:
    """Write an answer file, whole or not at all.

    Args:
        path: the `.jsonl` file.
        predictions: in the order asked.
        scores: one per prediction; None where they were not scored.
        model_id: what gave the answers.
    """
    scored: Sequence[float | None] = [None] * len(predictions) if scores is None else scores
    pairs = zip(predictions, scored, strict=True)
    rows = (answer_row(prediction, score=score, model_id=model_id) for prediction, score in pairs)
    # ASCII only: scoring scripts of others open the file in whatever encoding their machine prefers. Metadata come from
    # all kinds of source files; a date in them must not lose an evaluation that is already done.
    write_atomically(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))


def read_predictions(path: Path) -> list[tuple[Prediction, float | None]]:
    """The predictions of an answer file with their scores, where the file has them.

    Files of other programs have no `metadata` of ours; then `answers` is empty and the score None.

    Raises:
        UserError: naming the file and line of every bad line at once.
    """
    rows: list[tuple[Prediction, float | None]] = []
    problems: list[Problem] = []
    # Not splitlines(): it also breaks at U+2028 and the like, which may stand inside an answer.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            rows.append(_prediction(json.loads(line)))
        except json.JSONDecodeError as error:
            problems.append(Problem(f"{where}:{error.colno}", f"is not JSON: {error.msg}", "one JSON object per line"))
        except _BadRow as error:
            problems.append(Problem(where, str(error), _HINT))
    if problems:
        raise UserError(problems=problems)
    return rows


class _BadRow(Exception):
    """What is wrong with a row that is JSON."""


def _prediction(row: object) -> tuple[Prediction, float | None]:
    if not isinstance(row, Mapping):
        raise _BadRow("is not a JSON object")
    identity = row.get("question_id")
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise _BadRow("question_id must be a text or a whole number" if "question_id" in row else "has no question_id")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise _BadRow("metadata must be an object")
    score = metadata.get("score")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not isfinite(score)):
        raise _BadRow("metadata.score must be a finite number or null")
    prediction = Prediction(
        id=str(identity),
        task=_text(metadata, "task", "metadata.task", ""),
        prompt=_text(row, "prompt", "prompt", ""),
        text=_text(row, "text", "text", None),
        answers=_texts(metadata.get("answers", ()), "metadata.answers"),
        route=_text(metadata, "route", "metadata.route", "base"),
        group=_text(metadata, "group", "metadata.group", ""),
        images=_texts(metadata.get("images", ()), "metadata.images"),
        metadata={key: value for key, value in metadata.items() if key not in _OURS},
    )
    return prediction, None if score is None else float(score)


def _text(row: Mapping[str, Any], key: str, name: str, default: str | None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str):
        raise _BadRow(f"{name} must be a text" if key in row else f"has no {name}")
    return value


def _texts(value: object, name: str) -> tuple[str, ...]:
    """A text or a list of texts, as a tuple."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise _BadRow(f"{name} must be a text or a list of texts")
    return tuple(value)
