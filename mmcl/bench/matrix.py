"""The whole matrix of a long stream: taking over what did not change against measuring every cell."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from mmcl.evaluation.matrix import Matrix
from mmcl.evaluation.predictions import read_predictions
from mmcl.experiment import Experiment
from mmcl.recipe.load import recipe_from_dict


def stream_recipe(tasks: int, questions: int, **changes: Any) -> dict[str, Any]:
    """A recipe of tiny parts on generated shapes, by default with isolated experts under an oracle.

    Args:
        tasks: of the stream.
        questions: test questions of each task.
        **changes: top-level keys of the recipe.
    """
    return {
        "name": "matrix",
        "model": {
            "encoder": {"name": "tiny", "width": 16},
            "projector": "mlp",
            "language": {"weights": "tiny:llama", "lora": {"rank": 2}},
        },
        "stream": {"name": "shapes", "length": tasks, "train_size": 32, "test_size": questions},
        "methods": [{"name": "projector_experts", "router": "oracle", "freeze_shared": True}],
        "train": {"batch_size": 16, "learning_rate": 0.01},
        "evaluate": {"max_new_tokens": 8},
        **changes,
    }


def matrix_reuse(
    *, tasks: int = 20, questions: int = 50, repetitions: int = 2, zero_shot: bool = False
) -> dict[str, Any]:
    """Seconds of evaluation over a stream, with `evaluate.reuse` and without; training is not counted.

    Both sides run the same recipe in turns, each time in a new folder. The seconds are those of all cells: routes,
    digests of weights, answers, scores. The matrices and all answers are compared.

    Args:
        tasks: of the stream.
        questions: of each task.
        repetitions: how often each side runs; the least sum counts.
        zero_shot: also ask every task before the first is trained (row 0), which both sides have to measure.

    Returns:
        A row as `mmcl bench` prints it, with all `seconds`, and how many questions were `asked`.
    """
    spec = stream_recipe(tasks, questions)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    results: list[Any] = []
    asked: dict[bool, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for repetition in range(repetitions):
            for reuse in (True, False) if repetition % 2 == 0 else (False, True):
                home = Path(folder) / f"{repetition}-{reuse}"
                data = {**spec, "evaluate": {**spec["evaluate"], "reuse": reuse, "zero_shot": zero_shot}}
                Experiment(recipe_from_dict(data, Path(folder)), home).run()
                cells = [json.loads(path.read_text()) for path in home.glob("stages/*/predictions/*.json")]
                seconds[reuse].append(sum(cell["seconds"] for cell in cells))
                asked[reuse] = sum(cell["n"] - cell["reused"] for cell in cells)
                results.append(_result(home))
    ours, theirs = min(seconds[True]), min(seconds[False])
    ratios = [every / few for few, every in zip(seconds[True], seconds[False], strict=True)]
    return {
        "work": f"evaluation of the whole matrix{' and row 0' if zero_shot else ''}, {tasks} tasks, isolated experts",
        "ours": ours,
        "theirs": theirs,
        "unit": "s",
        # Less is better on both sides, as in every row of seconds: the share of the time that is left.
        "ratio": ours / theirs,
        "ratio_range": [1 / max(ratios), 1 / min(ratios)],
        "peer": "measuring every cell",
        "dtype": spec["model"]["language"].get("dtype", "fp32"),
        "image_tokens": None,
        "questions": questions,
        "answers_equal": all(result == results[0] for result in results),
        "seconds": {"reuse": seconds[True], "every cell": seconds[False]},
        "asked": {"reuse": asked[True], "every cell": asked[False]},
    }


def _result(home: Path) -> Any:
    """The matrix and every answer."""
    answers = {
        str(path.relative_to(home)): [(row.id, row.text, row.route, score) for row, score in read_predictions(path)]
        for path in sorted(home.glob("stages/*/predictions/*.jsonl"))
    }
    return Matrix.read(home / "matrix.json"), answers
