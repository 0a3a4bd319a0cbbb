from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmcl.errors import UserError
from mmcl.evaluation.all_metrics import DEFINITIONS, metrics_document
from mmcl.evaluation.predictions import write_predictions
from mmcl.protocols import Prediction


def write_matrix(path: Path, first: float, last: float = 0.5, second: float = 0.75) -> Path:
    path.write_text(f"stage,a,b\na,{first},\nb,{last},{second}\n")
    return path


def write_answers(folder: Path, scores: dict[str, list[float]]) -> Path:
    """`{"STAGE/TASK": scores}`, two questions about an image."""
    for name, each in scores.items():
        stage, task = name.split("/")
        rows = [
            Prediction(id=str(k), task=task, prompt="?", text="x", answers=("x",), images=(f"{task}{k // 2}.png",))
            for k in range(8)
        ]
        (folder / stage).mkdir(parents=True, exist_ok=True)
        write_predictions(folder / stage / f"{task}.jsonl", rows, each)
    return folder


SCORES = {
    "a/a": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0],
    "b/a": [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0],
    "b/b": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0],
}


def test_of_several_runs_there_are_means_with_intervals(tmp_path: Path) -> None:
    paths = [write_matrix(tmp_path / f"{k}.csv", first) for k, first in enumerate((0.7, 0.8, 0.9))]
    document = metrics_document(paths)
    assert document["BWT"] == pytest.approx(-0.3) and document["FM"] == pytest.approx(0.3)
    low, high = document["intervals"]["BWT"]["interval"]
    assert high - low == pytest.approx(2 * 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert document["FWT"] is None and "FWT" in document["undefined"]
    assert set(document["definitions"]) >= {"ACC", "BWT", "FM"}


def test_answers_give_one_run_its_interval(tmp_path: Path) -> None:
    matrix, answers = write_matrix(tmp_path / "m.csv", 0.75), write_answers(tmp_path / "answers", SCORES)
    document = metrics_document([matrix], answers=[answers])
    low, high = document["intervals"]["FM"]["interval"]
    assert document["FM"] == 0.25 and low <= 0.25 <= high and high - low > 0.1
    assert "OP" in document and "intervals" not in metrics_document([matrix])
    twice = metrics_document([matrix, matrix], answers=[answers, answers])
    assert twice["intervals"]["ACC"]["runs"] == 2 and "bootstrap" in twice["intervals"]["ACC"]["over"]
    assert twice["intervals"]["ACC"]["interval"][0] < twice["ACC"]  # equal runs, but the questions are a sample


def test_a_given_baseline_is_in_no_draw(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("task,score\na,0.1\nb,0.1\n")
    path = tmp_path / "m.csv"
    path.write_text("stage,a,b\nzero-shot,0.5,0.5\na,0.75,0.5\nb,0.5,0.75\n")
    runs = metrics_document([path, path], tmp_path / "b.csv")
    assert runs["FWT"] == pytest.approx(0.4) and runs["intervals"]["FWT"]["value"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a/a": SCORES["a/a"], "b/b": SCORES["b/b"]}, "there is no such answer file"),
        ({**SCORES, "b/a": [None] * 8}, "the answer to question 0 has no metadata.score"),
    ],
)
def test_answers_that_are_missing_are_named(tmp_path: Path, scores: dict[str, list[float]], message: str) -> None:
    matrix, answers = write_matrix(tmp_path / "m.csv", 0.75), write_answers(tmp_path / "answers", scores)
    with pytest.raises(UserError, match=message) as caught:
        metrics_document([matrix], answers=[answers])
    assert "a.jsonl" in caught.value.problems[0].where
    with pytest.raises(UserError, match="2 folders of answers for 1 matrices"):
        metrics_document([matrix], answers=[answers, answers])


def test_a_score_that_its_rows_do_not_have_is_no_mean(tmp_path: Path) -> None:
    matrix = write_matrix(tmp_path / "m.csv", 0.3)
    document = metrics_document([matrix], answers=[write_answers(tmp_path / "answers", SCORES)])
    assert document["intervals"]["FM"]["interval"] is None
    assert "not the mean of their rows: a" in document["intervals"]["FM"]["over"]


def test_a_stage_in_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"tasks": ["a"], "stages": ["../x"], "matrix": [[0.5]], "row0": None}))
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="leaves the folder"):
        metrics_document([tmp_path / "m.json"], answers=[tmp_path / "in"])


def test_every_metric_is_in_the_docs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in DEFINITIONS if f"`{name}`" not in text] == []
