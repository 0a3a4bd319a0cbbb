from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmcl.errors import UserError
from mmcl.evaluation.predictions import write_predictions
from mmcl.evaluation.score import score_file
from mmcl.protocols import Prediction


def answers(path: Path, *rows: tuple[str, str, tuple[str, ...]]) -> Path:
    write_predictions(path, [Prediction(id=i, task="t", prompt="", text=text, answers=refs) for i, text, refs in rows])
    return path


def test_answer_file(tmp_path: Path) -> None:
    path = answers(tmp_path / "a.jsonl", ("1", "Yes.", ("yes",)), ("2", "", ("no",)), ("2", "no", ("no",)))
    document = score_file(path, metric="exact", mode="strict")
    assert document["rows"] == [{"id": "1", "score": 1.0}, {"id": "2", "score": 0.0}, {"id": "2", "score": 1.0}]
    assert (document["metric"], document["mode"], document["n"]) == ("exact", "strict", 3)
    assert document["corpus"] == pytest.approx(2 / 3)
    assert "trailing periods" in document["definition"] and document["follows"]
    assert score_file(path, metric="exact", mode="paper")["corpus"] == pytest.approx(1 / 3)


def test_a_file_of_one_answer(tmp_path: Path) -> None:
    path = answers(tmp_path / "a.jsonl", ("1", "yes", ("yes",)))
    assert score_file(path, metric="vqa_accuracy")["rows"] == [{"id": "1", "score": 1.0}]


def test_cases(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    cases = [{"id": "x", "prediction": "red", "references": ["red"]}, {"prediction": "it is red", "references": "red"}]
    path.write_text(json.dumps({"metric": "m", "cases": cases}))
    document = score_file(path, metric="contains")
    assert document["rows"] == [{"id": "x", "score": 1.0}, {"id": "1", "score": 1.0}]


def test_mistakes_in_cases(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    cases = [1, {"references": ["a"]}, {"prediction": 3, "references": ["a"]}, {"prediction": "a", "references": [1]}]
    path.write_text(json.dumps({"cases": cases}))
    with pytest.raises(UserError) as caught:
        score_file(path, metric="exact")
    assert [problem.where for problem in caught.value.problems] == [f"{path}:cases[{index}]" for index in range(4)]


def test_rows_without_references_are_named(tmp_path: Path) -> None:
    path = answers(tmp_path / "a.jsonl", ("1", "a", ("a",)), ("2", "a", ()), ("3", "a", ()))
    with pytest.raises(UserError) as caught:
        score_file(path, metric="exact")
    assert [problem.where for problem in caught.value.problems] == [f"{path} (question 2)", f"{path} (question 3)"]


def test_nothing_to_score(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no answers"):
        score_file(tmp_path / "a.jsonl", metric="exact")


def test_unknown_metric(tmp_path: Path) -> None:
    path = answers(tmp_path / "a.jsonl", ("1", "a", ("a",)))
    with pytest.raises(UserError, match="exakt"):
        score_file(path, metric="exakt")


def test_a_metric_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from mmcl.protocols import Score\n"
        "class First:\n"
        "    definition, follows = 'same first letter', 'nobody'\n"
        "    def __call__(self, rows):\n"
        "        scores = tuple(float(row.text[:1] == row.answers[0][:1]) for row in rows)\n"
        "        return Score(scores, sum(scores) / len(scores))\n"
        "class Drops(First):\n"
        "    def __call__(self, rows):\n"
        "        return Score((), 1.0)\n"
    )
    path = answers(tmp_path / "a.jsonl", ("1", "abc", ("axy",)))
    document = score_file(path, metric="./mine.py:First", folder=tmp_path)
    assert (document["corpus"], document["mode"], document["definition"]) == (1.0, None, "same first letter")
    with pytest.raises(UserError, match="gave 0 scores for 1 rows"):
        score_file(path, metric="./mine.py:Drops", folder=tmp_path)
